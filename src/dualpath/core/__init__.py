"""The vocabulary every other package speaks: ids, geometry, block keys, plans, requests, phases, errors.

Standard library and numpy only. Anyone may import it; it imports nothing of DualPath.
"""
