"""Demonstrations and comparisons: agents replayed against a cluster or a server, and what comes of them.

Called by ``launch``, which brings the clusters. Knows them as the gateway does (``gateway.backend``) or over HTTP only.
"""
