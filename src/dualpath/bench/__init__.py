"""Demonstrations and comparisons: workloads replayed against a running server, and what comes of them.

Called by ``launch``. Talks to servers over HTTP only, like any client.
"""
