"""Weights that change under vLLM: what a node makes of it, the door in the API server, and who is told what."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.scheduler.fixtures import NAMESPACE, make_request
from tests.vllm.nodes import BLOCK, Nodes, model_dir, nodes, save
from tests.vllm.pair import pair, until
from tests.vllm.test_nodes import NEW_IDS, ONE, PROMPT, TWO, ended, handed_over, handing_over

from dualpath.core.errors import ConfigError, InvalidRequestError, OtherWeightsError, WeightsError
from dualpath.core.keys import root_key
from dualpath.core.pause import PauseMode
from dualpath.core.request import TokenEvent
from dualpath.core.weights import Weights
from dualpath.models.updates import StartWeights
from dualpath.protocol.api import DecodeOrder, DecodeStep
from dualpath.store.open import open_store
from dualpath.vllm.messages import Load, Push, StepWork
from dualpath.vllm.worker import half
from dualpath.vllm.worker.staged_prefill import StagedPrefill
from dualpath.vllm.worker.weights import NodeWeights


def _weights(folder: Path, number: int) -> Weights:
    return Weights(number, str(number), str(model_dir(folder / f"w{number}", number)))


def _node_weights(folder: Path) -> NodeWeights:
    start = model_dir(folder / "start", 0)
    return NodeWeights(start, NAMESPACE, "the start")


# -- which weights a model has ----------------------------------------------------------------------------------------


def test_weights_are_named_first_and_then_taken(tmp_path: Path) -> None:
    node, new, loaded = _node_weights(tmp_path), _weights(tmp_path, 1), list[str]()
    with pytest.raises(ConfigError, match="have not been loaded here"):
        node.change(new, loaded.append)
    fingerprint = node.name(new)
    assert (node.current, node.fingerprint) == (Weights(), NAMESPACE.model_fingerprint)
    node.change(new, loaded.append)
    node.change(new, loaded.append)
    assert (node.current, node.fingerprint, loaded) == (new, fingerprint, [new.directory])
    assert node.namespace(new) == replace(NAMESPACE, model_fingerprint=fingerprint)
    assert node.name(Weights()) == NAMESPACE.model_fingerprint
    node.change(Weights(), loaded.append)
    assert loaded == [new.directory, str(tmp_path / "start")]


def test_the_same_weights_by_another_name_are_not_loaded_again(tmp_path: Path) -> None:
    node = _node_weights(tmp_path)
    same = Weights(1, "1", str(shutil.copytree(tmp_path / "start", tmp_path / "same")))
    node.name(same)
    assert not node.changes_kv(same)
    node.change(same, pytest.fail)
    assert (node.current, node.fingerprint) == (same, NAMESPACE.model_fingerprint)


def test_files_that_change_while_they_are_loaded_are_not_used(tmp_path: Path) -> None:
    node, new, loaded = _node_weights(tmp_path), _weights(tmp_path, 1), list[str]()
    node.name(new)

    def reload(directory: str) -> None:
        loaded.append(directory)
        if directory == new.directory:
            model_dir(Path(directory), 2)

    with pytest.raises(ConfigError, match="somebody writes there"):
        node.change(new, reload)
    assert loaded == [new.directory, str(tmp_path / "start")]
    assert node.current == Weights()


@pytest.mark.parametrize("breaks_off", [True, False])
def test_a_model_with_unknown_weights_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks_off: bool) -> None:
    """In part the new ones, or those of a start that somebody has written over."""
    node, new = _node_weights(tmp_path), _weights(tmp_path, 1)
    node.name(new)

    def end(code: int) -> None:
        raise SystemExit(code)

    def reload(directory: str) -> None:
        if breaks_off:
            raise OSError("input/output error")
        model_dir(Path(directory), 7)

    monkeypatch.setattr("os._exit", end)
    with pytest.raises(SystemExit, match="76"):
        node.change(new, reload)


def test_weights_that_came_behind_us_are_noticed(tmp_path: Path) -> None:
    node, new = _node_weights(tmp_path), _weights(tmp_path, 1)
    node.check("the start")
    with pytest.raises(ConfigError, match="behind DualPath"):
        node.check(new.directory)
    node.name(new)
    node.change(new, lambda _: None)
    node.check(new.directory)
    with pytest.raises(ConfigError, match="behind DualPath"):
        node.check("the start")


def test_files_are_read_once_for_all_who_ask_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node, new, read = _node_weights(tmp_path), _weights(tmp_path, 1), list[Path]()
    fingerprint_of = StartWeights.fingerprint_of

    def counted(self: StartWeights, directory: Path) -> str:
        read.append(directory)
        time.sleep(0.05)
        return fingerprint_of(self, directory)

    monkeypatch.setattr(StartWeights, "fingerprint_of", counted)
    with ThreadPoolExecutor() as threads:
        (fingerprint,) = set(threads.map(node.name, [new] * 4))
    assert len(read) == 1
    model_dir(Path(new.directory), 2)
    assert node.name(new) != fingerprint, "other files are there now"


class _Changing(NodeWeights):
    """vLLM's thread changes them behind whoever has just looked."""

    looks: Iterator[Weights]

    @property
    def current(self) -> Weights:  # type: ignore[override]
        return next(self.looks)

    @current.setter
    def current(self, weights: Weights) -> None:
        self.looks = repeat(weights)


def test_weights_are_told_with_their_own_fingerprint_while_they_change(tmp_path: Path) -> None:
    """Else a new scheduler would look for the new ones' blocks by the former ones' name, or ask for them in vain."""
    node, new = _Changing(model_dir(tmp_path / "start", 0), NAMESPACE), _weights(tmp_path, 1)
    node.name(new)
    node.looks = chain([Weights()], repeat(new))
    engine: Any = SimpleNamespace(parts=SimpleNamespace(weights=node))
    assert asyncio.run(StagedPrefill.weights(engine)) == (Weights(), NAMESPACE.model_fingerprint)


# -- what becomes of requests -----------------------------------------------------------------------------------------


async def test_a_turn_of_each_weights_is_stored_under_their_name(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        start, new = both.namespace, _weights(tmp_path, 1)
        await both.turn("one", PROMPT, seed=1)
        await both.change(new)
        assert both.namespace != start
        made = await both.turn("two", PROMPT, seed=2)
        await both.change(replace(new, number=2))
        order = await both.read(both.request("three", PROMPT), 4, (0, 1, 2, 3))
        slots = both.prefill.node.engine._staged.slots(order.request.request_id)
        found = [bytes(both.prefill.traffic.slot_view(slots[block])[4096:]) for block in range(4)]
        assert found == [made[:, block].contiguous().numpy().tobytes() for block in range(4)]
        await both.release(order.request.request_id)
        for namespace in (start, both.namespace):
            store = open_store(both.prefill.node._settings.store_url, namespace, namespace.geometry)
            assert len(list(store.list_blocks())) == 4
            store.close()


async def test_orders_for_other_weights_are_refused(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        former = await both.read(both.request("one", PROMPT), 0, ())
        await both.change(_weights(tmp_path, 1))
        with pytest.raises(OtherWeightsError):
            await anext(both.prefill.line.hand_over(former))
        order = DecodeOrder(former.request, 0, TokenEvent(1), former.keys, former.root, former.namespace_digest)
        with pytest.raises(OtherWeightsError):
            await anext(both.decode.line.persist(order))
        with pytest.raises(OtherWeightsError):  # a scheduler that knows of no updates means the start's
            await anext(both.decode.line.persist(replace(order, namespace_digest=b"")))
        await both.release(ONE)


async def test_a_prompt_on_its_way_comes_to_nothing(tmp_path: Path) -> None:
    """vLLM, where it goes on, computes all of it, and hands nothing over."""
    async with nodes(tmp_path) as both:
        await both.turn("one", PROMPT, seed=1)
        _, line = await handing_over(both, TWO, 4, (0, 1, 2, 3))
        await both.change(_weights(tmp_path, 1))
        with pytest.raises(OtherWeightsError):
            await ended(line)
        load, push = Load("two", TWO, 0, NEW_IDS[:4]), Push("two", TWO, 0, NEW_IDS, is_last=True)
        before = both.prefill.content(NEW_IDS)
        await both.step(both.prefill, StepWork(loads=[load], pushes=[push]))
        assert both.prefill.half.load_errors == set(NEW_IDS[:4])
        assert torch.equal(both.prefill.content(NEW_IDS), before)
        await both.left(both.prefill, "two")
        await both.release(TWO)


async def _decoding(both: Nodes, *, is_opaque: bool) -> AsyncIterator[DecodeStep]:
    """Of ``ONE``, which vLLM has not taken yet."""
    order = await handed_over(both, ONE)
    request = replace(order.request, is_opaque=is_opaque)
    line: AsyncIterator[DecodeStep] = both.decode.line.persist(
        DecodeOrder(request, 0, TokenEvent(1), order.keys, root_key(both.namespace), both.namespace.digest)
    )
    while len((await anext(line)).durable) == 0:
        pass
    return line


async def test_a_request_whose_tokens_we_know_is_placed_again(tmp_path: Path) -> None:
    """Before the model has others: whoever takes its tokens must not take the next for the former ones'."""
    async with nodes(tmp_path) as both:
        line, loaded = await _decoding(both, is_opaque=False), list[str]()
        changing = asyncio.create_task(both.change(_weights(tmp_path, 1), loaded.append))
        with pytest.raises(OtherWeightsError):
            async for _ in line:
                pass
        await both.left(both.prefill, "one")
        await asyncio.sleep(0.1)
        assert len(loaded) == 1, "the prefill engine's"
        await both.release(ONE)
        await changing
        assert len(loaded) == 2


async def test_a_gateway_that_is_gone_keeps_no_weights_from_changing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(half, "LET_GO_S", 0.1)
    async with nodes(tmp_path) as both:
        await _decoding(both, is_opaque=False)
        async with asyncio.timeout(10):
            await both.change(_weights(tmp_path, 1))
        await both.left(both.prefill, "one")
        await both.release(ONE)


async def test_an_answer_of_vllms_own_goes_on_without_kv_of_former_weights(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        line = await _decoding(both, is_opaque=True)
        start, steps = both.namespace, list[DecodeStep]()
        await both.change(_weights(tmp_path, 1))
        await both.step(both.decode, StepWork(loads=[Load("one", ONE, 0, NEW_IDS)]))
        assert await both.taken() == ({"one"}, {"one"}), "its prompt was not taken: vLLM computes it"
        tokens = [*PROMPT[4 * BLOCK :], *range(BLOCK - 20)]
        await both.step(both.decode, StepWork(saves=[save("one", 4, NEW_IDS[4], tokens)]))
        await both.left(both.decode, "one")
        await both.decode.line.stop(ONE)
        async for step in line:
            steps.append(step)
        assert "1" in [step.weight_version for step in steps]
        await both.left(both.prefill, "one")
        await both.release(ONE)
        store = open_store(both.decode.node._settings.store_url, start, start.geometry)
        assert len(list(store.list_blocks())) == 4, "the prompt's, which are right"
        store.close()


async def test_blocks_are_not_given_back_while_they_are_copied_out(tmp_path: Path) -> None:
    async with nodes(tmp_path, num_write_slots=1, slot_s=60.0) as both:
        line = await _decoding(both, is_opaque=True)
        busy = await both.decode.traffic.write_slots.acquire(1)
        await both.step(both.decode, StepWork(loads=[Load("one", ONE, 0, NEW_IDS)]))
        await both.taken()
        tokens = [*PROMPT[4 * BLOCK :], *range(BLOCK - 20)]
        await both.step(both.decode, StepWork(saves=[save("one", 4, NEW_IDS[4], tokens)]))
        await both.change(_weights(tmp_path, 1))
        assert both.decode.half.finished({"one"}) == {"one"}, "vLLM may have it: what waits was called off"
        both.decode.traffic.write_slots.release(busy)
        await both.decode.line.stop(ONE)
        num_lost = 0
        async for step in line:
            num_lost += len(step.not_persisted)
        assert num_lost == 1
        await both.left(both.prefill, "one")
        await both.release(ONE)


async def test_after_a_change_that_comes_to_nothing_orders_are_for_the_former(tmp_path: Path) -> None:
    async with nodes(tmp_path) as both:
        new = _weights(tmp_path, 1)

        def written(directory: str) -> None:
            if directory == new.directory:
                model_dir(Path(directory), 2)

        with pytest.raises(ConfigError, match="somebody writes there"):
            await both.change(new, written)
        await both.turn("one", PROMPT, seed=1)


# -- scheduler, links and servers -------------------------------------------------------------------------------------


async def test_both_servers_change_or_none() -> None:
    async with pair() as it:
        control = it.service.control
        with pytest.raises(WeightsError, match="no such directory"):
            await control.update_weights("/none")
        await control.update_weights("/one", "first")
        assert control.weight_version == "first"
        it.decode_server.fail_with["/dualpath/weights"] = (409, {"error": {"message": "no room"}})
        with pytest.raises(WeightsError, match=r"the weights 3 of /two are not used: vLLM at .*: no room"):
            await control.update_weights("/two")
        assert control.weight_version == "first"
        assert it.prefill.worker.has.directory == it.decode.worker.has.directory == "/one"


async def test_a_server_without_a_door_keeps_its_weights_and_says_what_it_lacks() -> None:
    async with pair(have_doors=False) as it:
        await until(it.service.ready)
        with pytest.raises(WeightsError, match=r"it was started without --middleware dualpath\.vllm\.door\.Door"):
            await it.service.control.update_weights("/one")
        assert it.service.ready()


async def test_a_server_without_a_door_refuses_a_pause_that_it_cannot_keep_and_serves() -> None:
    async with pair(have_doors=False) as it:
        await until(it.service.ready)
        with pytest.raises(InvalidRequestError, match="was started without --middleware"):
            await it.service.control.pause(PauseMode.KEEP)
        assert not it.service.control.is_paused
        async with asyncio.timeout(10):
            assert len(await it.run(make_request("after", max_tokens=4))) == 4


async def test_a_pause_that_keeps_is_the_doors() -> None:
    async with pair() as it:
        running = asyncio.create_task(it.run(make_request("kept", max_tokens=200)))
        await until(lambda: bool(it.decode.worker.running))
        await it.service.control.pause(PauseMode.KEEP)
        assert it.decode_server.at_door[-1] == it.prefill_server.at_door[-1] == "pause"
        await asyncio.sleep(0.05)
        assert not running.done()
        await it.service.control.resume()
        assert len(await running) == 200


async def test_a_server_goes_on_though_a_pause_came_while_the_former_one_ended() -> None:
    async with pair() as it:
        engine, told = it.scheduler.desk._engines[it.decode.info.engine_id], it.decode_server.at_door
        await engine.pause()
        ask, may_end = it.servers[1].ask, asyncio.Event()

        async def slow(path: str, *more: Any) -> bytes:
            answer = await ask(path, *more)
            if path.endswith("resume"):
                await may_end.wait()
            return answer

        it.servers[1].ask = slow  # type: ignore[method-assign]
        former = asyncio.create_task(engine.resume())
        await until(lambda: told[-1] == "resume")
        latter = asyncio.create_task(engine.pause())
        await asyncio.sleep(0.05)
        may_end.set()
        await asyncio.gather(former, latter)
        assert told[-1] == "pause"
        await engine.resume()
        assert told[-1] == "resume"


async def test_a_server_that_is_started_again_gets_the_weights_in_use() -> None:
    async with pair() as it:
        await it.service.control.update_weights("/one")
        for node, line in ((it.prefill, it.lines[0]), (it.decode, it.lines[1])):
            node.worker.has = Weights()
            node.come_back()
            line.come_back(engines=(node.info,))
            async with asyncio.timeout(10):
                await until(lambda node=node: node.worker.has.directory == "/one" and it.service.ready())  # type: ignore[misc]
