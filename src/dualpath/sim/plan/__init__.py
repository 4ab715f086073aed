"""The planner: the cheapest cluster that serves a workload within its limits, by bounds first, then by simulation.

Called by ``cli``. ``question`` says what is asked, ``bounds`` rule out what cannot work, ``evaluate`` simulates one
candidate, ``search`` climbs from cheap to expensive, ``answer`` checks the winner with other seeds.
"""
