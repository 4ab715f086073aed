"""``dualpath gpu check``: everything about a GPU that cannot be known without one, in ten minutes; each step a file."""
