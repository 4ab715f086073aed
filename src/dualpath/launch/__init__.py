"""Composition root and CLI: the only place that names concrete backends."""
