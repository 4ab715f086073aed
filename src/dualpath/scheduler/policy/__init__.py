"""The decisions, pure: plain numbers in, a choice out. Shared by the live scheduler and the simulator."""
