"""The life of a simulated request, as events in time."""
