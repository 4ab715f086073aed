"""A model on two processes: the same tokens and the same blocks as on one, and nobody left waiting when it fails."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.models import leader_process
from tests.models.little_engine import Conversation, LittleEngine, RecordingStream

from dualpath.core.errors import ConfigError, EngineLostError, TransferError, UnsupportedModelError
from dualpath.models.layout import GqaLayout
from dualpath.models.parallel.follower import decode_items, encode_items
from dualpath.models.parallel.leader import ParallelModel, start_leader
from dualpath.models.parallel.load import PARALLEL_FAMILIES, check_parallel
from dualpath.models.parallel.shard_stream import packed
from dualpath.models.parallel.shares import HeadShares
from dualpath.models.seam import DecodeBatch, Model, ModelSpec, PrefillItem

pytestmark = pytest.mark.timeout(300)  # processes that import torch, on machines with other work

WORLD = 2
FAST = ("llama", "qwen3", "qwen3_moe", "deepseek_v2")
FAMILIES = [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in PARALLEL_FAMILIES]
ATOL = 2e-4  # float32 logits of magnitude 10: sums over ranks are in another order


class PrefillTogether:
    """Prefill by the ranks, decode by one process: as in a cluster."""

    def __init__(self, together: ParallelModel, alone: Model) -> None:
        self._together, self._alone = together, alone

    @property
    def spec(self) -> ModelSpec:
        return self._together.spec

    @property
    def device(self) -> torch.device:
        return self._together.device

    def prefill(self, items: list[PrefillItem], stream: RecordingStream) -> torch.Tensor:
        return self._together.prefill(items, stream)

    def decode(self, batch: DecodeBatch, pool: torch.Tensor) -> torch.Tensor:
        return self._alone.decode(batch, pool)


def start(model_dir: Path) -> ParallelModel:
    return start_leader(model_dir, WORLD, dtype="float32", fingerprint="00", timeout_s=100.0)


def tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(32, 127) for _ in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
def test_conversations_equal_one_processs(
    family: str, model_of: Callable[[str], Model], model_dir_of: Callable[[str], Path]
) -> None:
    """Four turns of three packed requests: uncached, cached, lengths across block boundaries."""
    alone, draw = model_of(family), random.Random(7)
    turns = [[tokens(draw, draw.randrange(1, 150)) for _ in range(3)] for _ in range(4)]
    together = start(model_dir_of(family))
    try:
        assert together.spec == alone.spec
        answers, kept = [], []
        for model in (alone, PrefillTogether(together, alone)):
            engine, conversations = LittleEngine(model, block_tokens=32), [Conversation() for _ in range(3)]
            answers.append([engine.turn(conversations, new, 6) for new in turns])
            logits, rows = engine.prefill(conversations[:1])
            kept.append((logits, rows[0].view(model.spec.kv_dtype)))
    finally:
        together.close()
    assert answers[1] == answers[0]
    assert len({tuple(answer) for turn in answers[0] for answer in turn}) > 6, "degenerate model"
    torch.testing.assert_close(kept[1], kept[0], atol=ATOL, rtol=0)


@pytest.fixture(scope="module")
def llama(model_dir_of: Callable[[str], Path]) -> Iterator[ParallelModel]:
    together = start(model_dir_of("llama"))
    yield together
    together.close()


class BrokenStream(RecordingStream):
    """Fails when history of a layer is asked for, or when a layer is handed back."""

    def __init__(self, *arguments: object, acquire: int = -1, release: int = -1) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self._fails = {"acquire": acquire, "release": release}

    def acquire(self, layer: int) -> torch.Tensor:
        if layer == self._fails["acquire"]:
            raise TransferError("the peer is gone")
        return super().acquire(layer)

    def release(self, layer: int) -> None:
        if layer == self._fails["release"]:
            raise TransferError("the peer is gone")
        super().release(layer)


@pytest.mark.parametrize("fails", [{"acquire": 0}, {"acquire": 2}, {"release": 1}, {"release": 3}], ids=str)
def test_a_failing_stream_leaves_the_ranks_usable(fails: dict[str, int], llama: ParallelModel) -> None:
    engine = LittleEngine(PrefillTogether(llama, llama))
    conversation = Conversation(tokens(random.Random(1), 90))
    before, rows = engine.prefill([conversation])
    history = rows[0][:, :64]
    item = PrefillItem(conversation.tokens[64:], 64, 0)
    assert llama.spec.num_layers == 4
    with pytest.raises(TransferError, match="the peer is gone"):
        llama.prefill([item], BrokenStream(llama, [item], [history], 128, **fails))
    after, _ = engine.prefill([conversation])
    assert torch.equal(before, after)


def test_bad_batches_reach_no_rank(llama: ParallelModel) -> None:
    stream = RecordingStream(llama, [], [], 64)
    with pytest.raises(ValueError, match="needs a new token"):
        llama.prefill([PrefillItem([], 3, 0)], stream)
    assert stream.acquired == []
    LittleEngine(PrefillTogether(llama, llama)).prefill([Conversation(tokens(random.Random(2), 9))])


def test_a_second_one_in_a_process_is_refused(llama: ParallelModel, model_dir_of: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="a process can run one tensor-parallel model"):
        start(model_dir_of("llama"))


def test_a_killed_rank_is_an_engine_lost(llama: ParallelModel) -> None:
    """The last test on this model."""
    (follower,) = llama._followers
    follower.kill()
    item = PrefillItem([65, 66], 0, 0)
    empty = torch.empty((llama.spec.num_layers, 0, llama.spec.bytes_per_token_layer), dtype=torch.uint8)
    for _ in range(2):  # lost stays lost, and is said at once
        with pytest.raises(EngineLostError, match="tensor-parallel group of 2 is lost"):
            llama.prefill([item], RecordingStream(llama, [item], [empty], 64))
        assert "is lost" in (llama.lost or "")


@pytest.mark.slow
def test_a_rank_does_not_outlive_its_leader(model_dir_of: Callable[[str], Path]) -> None:
    words = [sys.executable, leader_process.__file__, str(model_dir_of("llama"))]
    leader = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert leader.stdout is not None
    follower = Path("/proc") / leader.stdout.readline().strip()
    assert follower.is_dir()
    leader.kill()
    leader.wait()
    end_s = time.monotonic() + 60.0
    while follower.is_dir():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def test_what_cannot_be_dealt_out_is_refused(model_dir_of: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedModelError, match="'gpt_oss' has no tensor-parallel plan"):
        check_parallel(model_dir_of("gpt_oss"), 2, "cpu")
    with pytest.raises(UnsupportedModelError, match="cannot be dealt out to 3 ranks"):
        check_parallel(model_dir_of("llama"), 3, "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device 'cuda': tensor parallelism here runs on cpu"):
            check_parallel(model_dir_of("llama"), 2, "cuda")


def test_shares_are_heads_in_order_and_join_again() -> None:
    whole = GqaLayout(torch.float32, kv_heads=4, head_dim=3)
    rows = torch.randn(5, whole.row_elems)
    shares = HeadShares.of(whole, 2)
    parts = shares.split(rows.view(torch.uint8))
    k, v = whole.split(rows)
    for rank, part in enumerate(parts):
        own_k, own_v = shares.layout.split(part.view(torch.float32))
        assert torch.equal(own_k, k[:, 2 * rank : 2 * rank + 2])
        assert torch.equal(own_v, v[:, 2 * rank : 2 * rank + 2])
    assert torch.equal(shares.join(parts), rows.view(torch.uint8))


def test_followers_lay_rows_out_as_the_leader_does() -> None:
    items = [PrefillItem([1, 2, 3], 64, 0), PrefillItem([4], 0, 128), PrefillItem([5, 6], 7, 192)]
    assert decode_items(encode_items(items)) == packed(items)
    assert [item.row_start for item in packed(items)] == [0, 67, 68]
