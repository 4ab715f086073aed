"""Every byte in and out of an engine: staging buffers, transfers, pacing, counters, transports.

Called by ``engine`` only. Imports ``store`` and ``core``. Nobody else moves KV bytes.
"""
