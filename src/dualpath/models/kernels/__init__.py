"""Attention on one device: what models ask for, and how each kind of device does it."""
