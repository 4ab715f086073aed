"""The leader: a ``seam.Model`` for a prefill engine, whose forwards run on all ranks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from dualpath.core.errors import ConfigError, DualPathError, EngineLostError
from dualpath.models.fingerprint import fingerprint_model_dir
from dualpath.models.hf_model import HfModel
from dualpath.models.parallel.follower import CLOSE, FollowerSettings, encode_items
from dualpath.models.parallel.group import LEADER, GroupMember, ProcessGroup, one_line
from dualpath.models.parallel.interfaces import use_loopback
from dualpath.models.parallel.load import check_parallel, load_shard
from dualpath.models.parallel.shard_stream import LeaderStream
from dualpath.models.parallel.shares import Shares
from dualpath.models.seam import DecodeBatch, LayerStream, ModelSpec, PrefillItem

log = logging.getLogger(__name__)
_END_S = 5.0


class ParallelModel:
    """See ``seam.Model``; prefill only. Once a rank is lost, every further forward raises EngineLostError."""

    def __init__(
        self,
        group: ProcessGroup,
        shard: HfModel,
        shares: Shares,
        spec: ModelSpec,
        followers: Sequence[subprocess.Popen[bytes]],
    ) -> None:
        self._group, self._shard, self._shares, self._spec = group, shard, shares, spec
        self._followers = followers
        self._lost: str | None = None

    @property
    def spec(self) -> ModelSpec:
        return self._spec

    @property
    def device(self) -> torch.device:
        return self._shard.device

    @property
    def lost(self) -> str | None:
        return self._lost

    @property
    def world(self) -> int:
        return self._group.world

    def prefill(self, items: Sequence[PrefillItem], stream: LayerStream) -> torch.Tensor:
        """As the seam says; raises EngineLostError besides, when a rank fails or does not come along."""
        if self._lost is not None:
            raise EngineLostError(self._lost)
        self._shard.check(items)
        leader = LeaderStream(self._group, self._shares, items, self.device, stream)
        try:
            self._group.command(encode_items(items))
            logits = self._shard.prefill(leader.items, leader)
            leader.finish()
        except DualPathError:
            raise  # the stream's own: told to the followers in time
        except Exception as error:
            self._lost = f"tensor-parallel group of {self.world} is lost: {one_line(error)}"
            log.exception("%s", self._lost)
            self._end_followers()
            raise EngineLostError(self._lost) from error
        finally:
            if self._lost is None:
                self._group.forget_command()
        return logits

    def decode(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("a tensor-parallel model prefills; decode engines have models of their own")

    def close(self) -> None:
        """End the followers, and wait for those that were started here. No forward is running."""
        if self._lost is None:
            self._lost = "the model is closed"
            self._group.command(CLOSE)
        self._end_followers()
        self._group.close()

    def _end_followers(self) -> None:
        for process in self._followers:
            if self._lost != "the model is closed":
                process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def start_leader(
    model_dir: str | Path,
    world: int,
    *,
    dtype: str = "auto",
    device: str = "auto",
    name: str | None = None,
    fingerprint: str | None = None,
    num_threads: int = 1,
    listen: tuple[str, int] | None = None,
    secret: bytes | None = None,
    timeout_s: float = 300.0,
) -> ParallelModel:
    """The model in ``model_dir`` on ``world`` ranks, all ready. Followers are started here, or, with ``listen``, waited
    for: they come with ``follower.follow`` from wherever they are, and with the same ``secret``.

    Raises UnsupportedModelError or ConfigError for what cannot be, EngineLostError where ranks do not come.
    """
    path = Path(model_dir)
    check_parallel(path, world, device)
    if (listen is None) != (secret is None):
        raise ConfigError("followers from elsewhere need a secret, those started here have no use for one")
    host, port = listen or ("127.0.0.1", 0)
    if listen is None:
        use_loopback()
    group = ProcessGroup(GroupMember(LEADER, world, host, port, timeout_s, secret))
    followers: list[subprocess.Popen[bytes]] = []
    try:
        if listen is None:
            members = [GroupMember(rank, world, host, group.port, timeout_s) for rank in range(1, world)]
            followers += [_start(FollowerSettings(member, str(path), dtype, num_threads)) for member in members]
        group.meet("cuda" if torch.cuda.is_available() else "cpu")
        shard, shares, spec = load_shard(
            group, path, dtype=dtype, name=name, fingerprint=fingerprint or fingerprint_model_dir(path)
        )
    except BaseException:
        for process in followers:
            process.kill()
            process.wait()
        group.close()
        raise
    return ParallelModel(group, shard, shares, spec, followers)


def _start(settings: FollowerSettings) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "dualpath.models.parallel.follower", msgspec.json.encode(settings).decode()]
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR", **os.environ}  # it warns of hosts without names
    return subprocess.Popen(words, env=quiet, start_new_session=True)  # Ctrl-C comes to the leader, which ends them
