"""The OpenAI-compatible API: requests in, tokens out, metrics and the request log.

Called by ``serving`` and ``ray``. Talks to the cluster through ``gateway.backend.Backend`` only.
"""
