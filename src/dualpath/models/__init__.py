"""Hugging Face models behind one seam: load, KV geometry per family, attention over streamed and paged KV.

Called by ``engine`` and ``cluster``. Imports ``core`` only (and torch, transformers).
"""
