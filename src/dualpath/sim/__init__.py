"""Discrete-event simulation of clusters nobody here has, driven by the live scheduler's own policy functions.

Called by ``cli`` and ``validation``. Knows ``core``, ``trace``, ``report`` and the pure files of ``config`` and
``scheduler``; no wall clock, no torch, no NIXL, no global randomness: the same spec and seed give the same result on
any machine.
"""
