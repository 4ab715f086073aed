"""Is what runs here as we say: the simulator beside a live cluster, the compute network under load."""
