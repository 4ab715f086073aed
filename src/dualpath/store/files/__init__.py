"""Blocks as files, on any mounted file system or on 3FS by its own calls."""
