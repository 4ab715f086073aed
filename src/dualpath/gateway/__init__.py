"""The OpenAI-compatible API: requests in, tokens out, metrics and the request log.

Called by ``launch``. Talks to the cluster through ``gateway.backend.Backend`` only.
"""
