"""Demonstrations and comparisons: agents replayed against a cluster or a server, and what comes of them.

Called by ``cli``, ``validation`` and ``testbed``. Knows clusters as the gateway does (``gateway.backend``) or over
HTTP.
"""
