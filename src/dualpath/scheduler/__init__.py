"""Which request runs where and reads through which side: pure policy, and the loop that drives it.

Called by ``gateway``. Policy files import ``core`` only and are shared with the simulator.
"""
