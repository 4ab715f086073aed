"""Nodes, gateway and scheduler as Ray actors: start, look, end. Only modules here import Ray, which is optional.

Ray places processes, restarts them and carries small control messages. KV never passes through it, and whether a node
is alive is our own heartbeat's to say (``protocol.node_link``).
"""
