"""Requests that an engine's own server answers: chat, completions, responses and messages as vLLM speaks them.

``dialects`` knows the endpoints' bodies and events, as far as one has to; ``upstream`` is who answers.
"""
