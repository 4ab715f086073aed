"""A follower's process: load a shard, then run what the leader runs, until the leader is gone."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers.utils import logging as transformers_logging

from dualpath.core.errors import DualPathError, EngineLostError
from dualpath.core.parent import end_with_parent
from dualpath.models.parallel.group import GroupMember, LeaderGoneError, ProcessGroup, one_line
from dualpath.models.parallel.load import load_shard
from dualpath.models.parallel.shard_stream import FollowerStream, ForwardAbortedError
from dualpath.models.seam import PrefillItem

log = logging.getLogger(__name__)

CLOSE = b""  # the last command


class FollowerSettings(msgspec.Struct, frozen=True):
    membership: GroupMember
    model_dir: str
    dtype: str
    num_threads: int


def encode_items(items: Any) -> bytes:
    """A forward as a command."""
    return msgspec.msgpack.encode([(list(item.token_ids), item.num_cached, item.num_logits) for item in items])


def decode_items(command: bytes) -> list[PrefillItem]:
    """As ``shard_stream.packed`` lays them out."""
    items, row = [], 0
    for token_ids, num_cached, num_logits in msgspec.msgpack.decode(command, type=list[tuple[list[int], int, int]]):
        items.append(PrefillItem(token_ids, num_cached, row, num_logits))
        row += num_cached + len(token_ids)
    return items


def follow(settings: FollowerSettings) -> None:
    """Return when the leader closes the model.

    Raises LeaderGoneError when it vanishes, EngineLostError when a forward fails, another DualPathError before that.
    """
    torch.set_num_threads(settings.num_threads)
    group = ProcessGroup(settings.membership)
    try:
        group.meet("cuda" if torch.cuda.is_available() else "cpu")
        # The fingerprint is for stored blocks, which only the leader's engine has.
        model, shares, _ = load_shard(group, Path(settings.model_dir), dtype=settings.dtype, name=None, fingerprint="")
        while (command := group.next_command()) != CLOSE:
            items = decode_items(command)
            try:
                model.prefill(items, FollowerStream(group, shares, items, model.device))
            except ForwardAbortedError:
                log.info("rank %d: a forward was given up", group.rank)
            except RuntimeError as error:  # a collective broke off, or the model did: nobody waits for us any more
                raise EngineLostError(f"rank {group.rank}: a forward failed: {one_line(error)}") from error
    finally:
        group.close()


def main(argv: list[str]) -> int:
    end_with_parent()
    transformers_logging.disable_progress_bar()  # the leader shows its own
    try:
        follow(msgspec.json.decode(argv[0], type=FollowerSettings))
    except LeaderGoneError:
        return 0
    except DualPathError as error:
        print(f"dualpath: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
