"""Builds clusters: nodes, engines, store and scheduler from settings, in this process or nodes in their own."""
