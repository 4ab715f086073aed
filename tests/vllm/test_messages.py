"""What a request brings along over HTTP, from us and from anybody."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from dualpath.core.ids import RequestId
from dualpath.protocol.methods import Tenure, methods
from dualpath.vllm.line import DecodeNodeLine, PrefillNodeLine
from dualpath.vllm.messages import Load, Push, Save, StepFailures, StepWork, attach, attached_to

XID = RequestId("r1")
SOUND: dict[str, Any] = attach(XID, 1, [5])["dualpath"]


def test_what_is_attached_is_found_again_beside_what_others_attach() -> None:
    params = json.loads(json.dumps({"prompt_token_ids": [1], **attach(XID, 256, [1, 2, 3])}))
    found = attached_to(params)
    assert found is not None
    assert (found.xid, found.num_tokens) == (XID, 256)
    assert found.is_for([1, 2, 3])
    assert found.is_for([1, 2, 3, 4])
    assert not found.is_for([1, 2])
    assert not found.is_for([1, 2, 4])


@pytest.mark.parametrize("params", [None, {}, {"do_remote_decode": True}], ids=str)
def test_a_request_without_it_is_none_of_ours(params: dict[str, Any] | None) -> None:
    assert attached_to(params) is None


@pytest.mark.parametrize(
    "value",
    [
        3,
        "x",
        [],
        {},
        {"v": 1},
        SOUND | {"num_tokens": -1},
        SOUND | {"v": 2},
        SOUND | {"num_prompt_tokens": 0},
        SOUND | {"prompt_digest": 7},
    ],
    ids=repr,
)
def test_what_somebody_made_up_is_a_value_error(value: Any) -> None:
    with pytest.raises(ValueError, match="dualpath"):
        attached_to({"dualpath": value})


def test_work_of_a_step_can_go_to_another_process() -> None:
    work = StepWork(
        loads=[Load("a", XID, 0, (1, 2))],
        pushes=[Push("a", XID, 1, (1, 2), is_last=True)],
        saves=[Save("b", XID, 3, 4, (5, 6))],
        preempted=("c",),
    )
    assert pickle.loads(pickle.dumps(work)) == work


def test_failures_of_ranks_are_those_of_any() -> None:
    both = StepFailures({"a"}, {1}) | StepFailures({"b"}, {2})
    assert both == StepFailures({"a", "b"}, {1, 2})


def test_what_is_asked_of_a_node_can_cross_a_link() -> None:
    prefill, decode = methods(PrefillNodeLine), methods(DecodeNodeLine)
    assert prefill["hand_over"].is_stream
    assert decode["persist"].is_stream
    assert not decode["stop"].is_stream
    assert {name for name, method in prefill.items() if method.tenure is Tenure.HOLDS} == {
        "hand_over",
        "read",
        "reserve",
    }
    assert {name for name, method in decode.items() if method.tenure is Tenure.HOLDS} == {"persist", "read", "reserve"}
