"""Prefill and decode engines: device memory, batches, layer streaming, decoding, persistence.

Called by ``scheduler`` through the protocols in ``protocol.api``. Imports ``models``, ``traffic``, ``store``, ``core``.
"""
