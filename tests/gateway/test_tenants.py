"""Every API key is a tenant: what it has cached and asked is its own business, and an admin key sees all requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
from tests.gateway.fakes import FakeBackend
from tests.gateway.test_errors import check

from dualpath.gateway.app import create_app
from dualpath.gateway.settings import GatewaySettings
from dualpath.gateway.tenants import EVERYBODY, Tenants
from dualpath.gateway.text.tokenizer import Tokenizer

Asking = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]
KEYS = ("alice-key", "bob-key")


@pytest.fixture
def asking(backend: FakeBackend, tokenizer: Tokenizer) -> Asking:
    """A client of an app with these settings."""

    @asynccontextmanager
    async def run(**settings: Any) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(create_app(backend, tokenizer, GatewaySettings(**settings)))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as http:
            yield http

    return run


def of(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def complete(http: httpx.AsyncClient, key: str | None, **fields: Any) -> str:
    headers = of(key) if key else {}
    answer = await http.post("/v1/completions", json={"prompt": "x"} | fields, headers=headers)
    assert answer.status_code == 200
    return str(answer.json()["id"])


async def seen(http: httpx.AsyncClient, key: str, **params: Any) -> list[str]:
    answer = await http.get("/v1/dualpath/requests", headers=of(key), params=params)
    assert answer.status_code == 200
    return [record["request_id"] for record in answer.json()["data"]]


# -- cached KV ---------------------------------------------------------------------------------------------------------


async def test_keys_share_no_cached_kv(asking: Asking, backend: FakeBackend) -> None:
    async with asking(api_keys=KEYS) as http:
        for key in (*KEYS, *KEYS):
            await complete(http, key)
        for key in KEYS:
            await complete(http, key, cache_salt="s")
            await http.post(
                "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]}, headers=of(key)
            )
    alice, bob, alice2, bob2, alice_s, alice_chat, bob_s, bob_chat = (
        request.cache_salt for request in backend.requests
    )
    assert (alice, bob) == (alice2, bob2) == (alice_chat, bob_chat)
    assert len({alice, bob, alice_s, bob_s, "", "s"}) == 6


async def test_no_salt_leads_into_the_cache_of_another_key(asking: Asking, backend: FakeBackend) -> None:
    async with asking(api_keys=KEYS) as http:
        await complete(http, "alice-key")
        alice = backend.requests[0].cache_salt
        for salt in ("", alice, "alice-key", f"alice-key{alice}"):
            await complete(http, "bob-key", cache_salt=salt)
    assert alice not in [request.cache_salt for request in backend.requests[1:]]


async def test_a_keys_cache_outlives_the_server(asking: Asking, backend: FakeBackend) -> None:
    """And the order in which keys are written down, and others that come and go."""
    async with asking(api_keys=KEYS) as http:
        await complete(http, "alice-key")
    async with asking(api_keys=("new-key", "alice-key"), admin_keys=("root",)) as http:
        await complete(http, "alice-key")
    assert len({request.cache_salt for request in backend.requests}) == 1


async def test_who_shares_or_has_no_keys_has_the_salt_that_was_asked_for(asking: Asking, backend: FakeBackend) -> None:
    async with asking(api_keys=KEYS, share_cache=True) as http:
        for key in KEYS:
            await complete(http, key)
            await complete(http, key, cache_salt="s")
    async with asking() as http:
        await complete(http, None)
        await complete(http, None, cache_salt="s")
    assert [request.cache_salt for request in backend.requests] == ["", "s"] * 3


# -- requests ----------------------------------------------------------------------------------------------------------


async def test_a_key_sees_its_own_requests_only(asking: Asking) -> None:
    async with asking(api_keys=KEYS, admin_keys=("root",)) as http:
        first = await complete(http, "alice-key")
        bobs = [await complete(http, "bob-key") for _ in range(150)]
        last = await complete(http, "alice-key")
        assert await seen(http, "alice-key") == [last, first]  # however many of others are in between
        assert await seen(http, "alice-key", limit=1) == [last]
        assert await seen(http, "bob-key", limit=3) == bobs[:-4:-1]
        assert await seen(http, "root", limit=10_000) == [last, *reversed(bobs), first]
        own = await complete(http, "root")
        assert await seen(http, "root", limit=1) == [own]


async def test_every_choice_of_a_request_is_its_keys(asking: Asking) -> None:
    async with asking(api_keys=KEYS) as http:
        job_id = await complete(http, "alice-key", n=3)
        assert sorted(await seen(http, "alice-key")) == [f"{job_id}-{i}" for i in range(3)]
        assert await seen(http, "bob-key") == []


async def test_without_keys_all_is_seen(asking: Asking) -> None:
    async with asking() as http:
        job_id = await complete(http, None)
        (record,) = (await http.get("/v1/dualpath/requests")).json()["data"]
        assert record["request_id"] == job_id


async def test_a_shared_cache_shares_no_requests(asking: Asking) -> None:
    async with asking(api_keys=KEYS, share_cache=True) as http:
        await complete(http, "alice-key")
        assert await seen(http, "bob-key") == []


def test_ids_cannot_be_made_up() -> None:
    alice, bob = (Tenants(KEYS, (), share_cache=False).find(key.encode()) for key in KEYS)
    assert alice is not None
    assert bob is not None
    mine = alice.new_id("cmpl")
    assert len({alice.new_id("cmpl") for _ in range(1000)}) == 1000
    assert alice.owns(mine)
    assert not bob.owns(mine)
    assert EVERYBODY.viewer is None
    for other in (mine[:-1], f"{mine[:-1]}é", "cmpl-", "cmpl", "", "-", mine.upper(), EVERYBODY.new_id("cmpl")):
        assert not alice.owns(other)


# -- the cluster, and keys ---------------------------------------------------------------------------------------------


async def test_only_an_admin_key_sees_the_cluster_where_there_is_one(asking: Asking) -> None:
    async with asking(api_keys=KEYS) as http:
        assert (await http.get("/v1/dualpath/stats", headers=of("bob-key"))).status_code == 200
    async with asking(api_keys=KEYS, admin_keys=("root", "toor")) as http:
        check(await http.get("/v1/dualpath/stats", headers=of("bob-key")), 403, None, "admin_key_required")
        for key in ("root", "toor"):
            assert (await http.get("/v1/dualpath/stats", headers=of(key))).status_code == 200
    async with asking(admin_keys=("root",)) as http:  # then nobody else is let in
        check(await http.get("/v1/models"), 401, None, "invalid_api_key")
        await complete(http, "root")


async def test_keys_are_any_bytes(asking: Asking) -> None:
    async with asking(api_keys=("schlüssel", "alice-key")) as http:
        for given, status in ((b"schl\xc3\xbcssel", 200), (b" alice-key ", 200), (b"schl\xfcssel", 401), (b"", 401)):
            headers = [(b"Authorization", b"Bearer " + given)]
            assert (await http.get("/v1/models", headers=headers)).status_code == status


async def test_no_key_is_kept_or_shown(asking: Asking, backend: FakeBackend) -> None:
    settings = GatewaySettings(api_keys=KEYS, admin_keys=("root-key",))
    tenants = Tenants(settings.api_keys, settings.admin_keys, share_cache=False)
    found = [tenants.find(key.encode()) for key in (*KEYS, "root-key")]
    async with asking(api_keys=KEYS) as http:
        await complete(http, "alice-key")
    shown = repr((settings, vars(tenants), found, backend.requests, backend.records))
    assert "-key" not in shown
