"""Frozen dataclasses that hold every setting with its unit, default and help; TOML and the CLI are generated from them.
"""
