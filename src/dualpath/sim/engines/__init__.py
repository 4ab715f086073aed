"""The hardware of a simulated cluster: engines, nodes, links."""
