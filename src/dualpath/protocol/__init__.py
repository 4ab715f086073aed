"""What the scheduler and engines have to say to each other, and how it gets from one process to another.

``api`` is all that an engine is asked. ``host`` answers from an engine's process, ``client`` asks over a ``link``; what
carries their bytes (a TCP connection, Ray actor calls, a loop in one process) is a ``channel``.
"""
