"""Which requests get a span: all that generate."""

from __future__ import annotations

import httpx
from tests.gateway.fakes import FakeBackend
from tests.gateway.test_odd_bodies import BODIES

from dualpath.gateway.http.traced import OPERATIONS


async def test_every_route_that_generates_gets_a_span(http: httpx.AsyncClient, backend: FakeBackend) -> None:
    generating = set()
    for path, body in BODIES.items():
        num_before = len(backend.requests)
        assert (await http.post(path, json=body)).status_code == 200
        if len(backend.requests) > num_before:
            generating.add(path)
    assert generating == OPERATIONS.keys()
