"""What would fail or be slow later, found out before a model is loaded: a line for each thing, with what to do."""
