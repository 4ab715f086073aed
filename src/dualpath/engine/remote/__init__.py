"""Engines of another process behind ``engine.api``: ``host`` serves them, ``link`` and ``client`` reach them.

How bytes get from one to the other (Ray actor calls, a loop in one process) is a ``Channel``, given by ``launch``.
"""
