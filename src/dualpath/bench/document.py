"""What the demonstration's agents work on: a harbour's log, made up from a seed, and questions about it."""

from __future__ import annotations

import random

_PLACES = [
    "north pier",
    "south pier",
    "fish market",
    "old crane",
    "lighthouse",
    "ferry dock",
    "dry dock",
    "customs house",
]
_PEOPLE = ["Ada", "Bruno", "Carla", "Dimitri", "Elena", "Farid", "Greta", "Hugo"]
_EVENTS = [
    "a rope of the {ship} broke and was replaced before noon",
    "the {ship} unloaded {n} crates of oranges",
    "the {ship} unloaded {n} barrels of olive oil",
    "a lamp went out and burns again since the evening",
    "the {ship} waited {n} minutes for the tide",
    "{n} passengers came ashore from the {ship}",
    "a loose plank was nailed down",
    "the crew of the {ship} asked for {n} litres of fresh water",
]
_SHIPS = ["Aurora", "Marianne", "Sea Fox", "Petrel", "Santa Rosa", "Nordlys", "Halcyon", "Blue Heron"]
QUESTIONS = [
    "Write one sentence that says what this log is about.",
    "What happened at the lighthouse?",
    "Which ship is named most often? Answer in one sentence.",
    "Write a short line for the harbour master about the south pier.",
    "Who should be thanked, and for what? Answer in one sentence.",
]


def harbour_log(seed: str, num_chars: int) -> str:
    """Text of at most ``num_chars`` characters, in whole lines; the same for the same arguments."""
    source, text, day = random.Random(seed), "Log of the harbour, written by those on duty.\n", 0
    while True:
        day += source.randint(0, 1)
        event = source.choice(_EVENTS).format(ship=source.choice(_SHIPS), n=source.randint(2, 90))
        line = f"Day {day + 1}, {source.choice(_PLACES)}: {event}. Noted by {source.choice(_PEOPLE)}.\n"
        if len(text) + len(line) > num_chars:
            return text
        text += line
