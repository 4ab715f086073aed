"""The ``dualpath`` command: a file for each verb and its options; what a verb does is in the room it is about."""
