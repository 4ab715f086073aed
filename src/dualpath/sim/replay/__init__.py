"""What a recorded minute would have been otherwise: its requests, replayed by the simulator under the same policies."""
