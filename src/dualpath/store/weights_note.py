"""What a running server writes beside the blocks of the weights that it uses: ``<namespace>/weights.json``.

Nobody who serves reads it. It tells ``dualpath store`` whose blocks these are, and that a server uses them: it is
written again every minute. The time in it is its writer's clock.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

WRITTEN_EVERY_S = 60.0
NOTE_NAME = "weights.json"
MAX_NOTE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class WeightsNote:
    """The latest writer's words, should several servers use the same weights."""

    model: str
    version: str  # as clients are told; "0": those of the server's start
    directory: str
    used_unix_s: float
    whole: str = ""  # the namespace of whole blocks, where this one has a rank's parts of them

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def parse_note(data: bytes) -> WeightsNote | None:
    """None: not a note. Fields of later versions are left out."""
    try:
        found = json.loads(data)
        return WeightsNote(
            str(found["model"]),
            str(found["version"]),
            str(found["directory"]),
            float(found["used_unix_s"]),
            str(found.get("whole", "")),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
