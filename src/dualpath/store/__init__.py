"""Where Full Blocks live: contract, object format, memory, file, 3FS and S3 backends, and the block index.

Called by ``traffic`` (bytes), ``scheduler`` (index) and ``cluster`` (construction). Imports only ``core``.
"""
