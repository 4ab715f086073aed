"""Commands for whoever operates a system: before it is started, while it runs, and where it is watched from."""
