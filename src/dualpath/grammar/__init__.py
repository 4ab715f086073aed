"""Grammars that outputs must fit: how they are written, and which tokens may come next. For gateway and engines."""
