"""Where Full Blocks live: contract, object format, memory and file backends, and the block index.

Called by ``traffic`` (bytes), ``scheduler`` (index) and ``launch`` (construction, CLI). Imports only ``core``.
"""
