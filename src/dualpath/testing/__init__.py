"""The real control code under seeded virtual time: worlds, faults, invariants, and a search for seeds that break them.

``python -m dualpath.testing.explore --seeds A-B`` runs it. Nothing here needs a thread, a socket or a second of
waiting. docs/reliability.md says what is promised, how it is tested, and what is not. Needs greenlet (extra "testing").
"""
