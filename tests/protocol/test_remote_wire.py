"""What crosses a link arrives as it was: errors with their class and details, orders with all they hold."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dualpath.core import errors
from dualpath.core.errors import (
    DualPathError,
    EngineBugError,
    EngineGoneError,
    EngineLostError,
    InvalidRequestError,
    OverloadedError,
)
from dualpath.core.ids import BlockKey, EngineId, PeerId, RequestId
from dualpath.core.request import FinishReason, Request, SamplingParams, TokenEvent
from dualpath.core.weights import Weights
from dualpath.protocol import wire
from dualpath.protocol.api import DecodeEngineClient, DecodeOrder, PrefillEngineClient, PrefillOrder
from dualpath.protocol.methods import methods

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, DualPathError)]
REQUEST = Request(
    RequestId("r~1"),
    tuple(range(40)),
    SamplingParams(max_tokens=7, temperature=0.5, seed=2**62, stop_token_ids=(3,), num_logprobs=2),
    "tenant",
)


def sent(protocol: type, name: str, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments as they arrive."""
    (call,) = wire.decode_to_node(wire.encode([wire.Call(9, EngineId("pe0"), name, wire.raw(arguments))]))
    assert isinstance(call, wire.Call)
    assert (call.call_id, call.engine_id, call.method) == (9, "pe0", name)
    return methods(protocol)[name].arguments.decode(call.arguments)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_keep_class_and_message(kind: type[DualPathError]) -> None:
    failed = wire.Failed(1, wire.Failure.of(kind("what happened")))
    (arrived,) = wire.decode_to_scheduler(wire.encode([failed]))
    assert isinstance(arrived, wire.Failed)
    error = arrived.error.error()
    assert type(error) is (EngineLostError if kind is EngineGoneError else kind), "a node that answers is not gone"
    assert str(error) == "what happened"


def test_errors_keep_their_details() -> None:
    invalid = wire.Failure.of(InvalidRequestError("no", param="messages", code="too_long")).error()
    assert isinstance(invalid, InvalidRequestError)
    assert (invalid.param, invalid.code) == ("messages", "too_long")
    overloaded = wire.Failure.of(OverloadedError("full", retry_after_s=2.5)).error()
    assert isinstance(overloaded, OverloadedError)
    assert overloaded.retry_after_s == 2.5


def test_an_engines_bug_is_not_taken_for_its_death() -> None:
    error = wire.Failure.of(ZeroDivisionError("x")).error()
    assert type(error) is EngineBugError
    assert "ZeroDivisionError" in str(error)


@pytest.mark.parametrize("kind", ["UnheardOfError", "annotations", "Exception"])
def test_an_error_of_another_version_is_an_error_all_the_same(kind: str) -> None:
    error = wire.Failure(kind, "what happened").error()
    assert type(error) is DualPathError
    assert str(error) == f"{kind}: what happened"


def test_orders_and_calls_arrive_as_they_were() -> None:
    keys = (BlockKey(b"\x00" * 16), BlockKey(bytes(range(16))))
    first = TokenEvent(5, -0.25, {5: -0.25, 9: -1.5}, FinishReason.LENGTH)
    prefill = PrefillOrder(REQUEST, 32, frozenset({0, 1}), PeerId("de0.1"), (4, 3, 9), keys)
    both: dict[str, tuple[Any, ...]] = {
        "read": (RequestId("r"), [(0, keys[0]), (7, keys[1])], b"n" * 16),
        "weights": (),
        "load_weights": (Weights(1, "step-1", "/w"),),
        "use_weights": (Weights(1, "step-1", "/w"),),
        "drop_weights": (Weights(1, "step-1", "/w"),),
        "add_peer": (b"\x00metadata\xff",),
        "remove_peer": (PeerId("de0.1"),),
        "release": (RequestId("r"),),
        "stats": (),
        "pause": (),
        "resume": (),
    }
    prefill_calls = {"reserve": (RequestId("r"), 3, 4), "peer_at_rest": (PeerId("de0.1"),), "prefill": (prefill,)}
    decode_calls = {
        "reserve": (RequestId("r"), 3),
        "decode": (DecodeOrder(REQUEST, 32, first, keys),),
        "stop": (RequestId("r"),),
    }
    for protocol, calls in ((PrefillEngineClient, both | prefill_calls), (DecodeEngineClient, both | decode_calls)):
        assert methods(protocol).keys() == calls.keys()
        for name, arguments in calls.items():
            assert sent(protocol, name, arguments) == arguments


def test_a_node_without_its_scheduler_ends_after_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    from dualpath.cluster import node_process

    class Node:
        silent_s = 0.0
        lost = None

    naps, codes = 0, []

    def sleep(seconds: float) -> None:
        nonlocal naps
        naps += 1
        Node.silent_s = 0.0 if naps == 5 else Node.silent_s + seconds  # heard again: the lease begins anew

    monkeypatch.setattr(node_process.time, "sleep", sleep)
    thread: threading.Thread = node_process.watch_lease(Node(), 10.0, codes.append)  # type: ignore[arg-type]
    thread.join(10)
    assert codes == [75]
    assert Node.silent_s == pytest.approx(10.0)
    assert naps == 15


def test_a_node_whose_model_is_lost_ends_itself() -> None:
    from dualpath.cluster import node_process

    class Node:
        silent_s = 0.0
        lost: str | None = None

    codes: list[int] = []
    node = Node()
    thread = node_process.watch_lease(node, 0.1, codes.append)  # type: ignore[arg-type]
    thread.join(0.2)
    assert thread.is_alive()
    node.lost = "tensor-parallel group of 2 is lost"
    thread.join(10)
    assert codes == [75]
