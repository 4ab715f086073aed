"""A real Prometheus scrapes a real server under load: every panel has data, also of several gateways; alerts work."""

from __future__ import annotations

import asyncio
import math
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dualpath.bench.server import running_server, store_url
from dualpath.cluster.free_ports import free_ports
from dualpath.models.init import init_model
from dualpath.report.dashboards.alerts import ALERTS
from dualpath.report.dashboards.panels import PANELS, W
from dualpath.report.dashboards.write import PROMETHEUS, write_dashboards

PROGRAM = shutil.which("prometheus")
pytestmark = [
    pytest.mark.skipif(PROGRAM is None, reason="prometheus is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(400),
]
RATE_INTERVAL = "30s"  # what Grafana puts for its variable; four scrapes at the least
NOT_ALWAYS = {'ALERTS{alertname=~"DualPath.*"}'}  # nothing where nothing is wrong
SERIES = re.compile(r"\bdualpath_[a-z_]+(?!\{)\b")
OF_REQUESTS = re.compile("dualpath_(ttft|tpot|phase|prompt_tokens|request)")  # each gateway's own
BLOCK = "0123456789abcdef" * 4
SHARED = "".join(f"{number:04}{BLOCK}" for number in range(12))


@asynccontextmanager
async def prometheus(out: Path, target: str) -> AsyncIterator[httpx.AsyncClient]:
    """With the files that ``dualpath dashboards`` writes, scraping more often than they say; the target twice, under
    two names: as two gateways, which show the same engines.
    """
    write_dashboards(out, target)
    config = yaml.safe_load((out / PROMETHEUS).read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["scrape_interval"] = "1s"
    config["scrape_configs"][0]["static_configs"][0]["targets"].append(target.replace("127.0.0.1", "localhost"))
    (out / PROMETHEUS).write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_ports(1)[0]}"
    words = [f"--config.file={out / PROMETHEUS}", f"--storage.tsdb.path={out / 'data'}"]
    words.append(f"--web.listen-address={address}")
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(str(PROGRAM), *words, stdout=quiet, stderr=quiet, cwd=out)
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}/api/v1", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        await process.wait()


async def _until_scraped(asked: httpx.AsyncClient, seconds: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                found = await _ask(asked, f"count_over_time(dualpath_queued_requests[{seconds + 30}s])")
            except httpx.TransportError:
                found = []
            if found and float(found[0]["value"][1]) >= seconds:
                return
            await asyncio.sleep(0.5)


async def _ask(asked: httpx.AsyncClient, expression: str) -> list[dict[str, Any]]:
    answer = (await asked.get("/query", params={"query": expression})).json()
    assert answer["status"] == "success", (expression, answer)
    result: list[dict[str, Any]] = answer["data"]["result"]
    return result


async def _agent(url: str, number: int) -> None:
    """Turns that share a stored beginning and have something of their own."""
    async with httpx.AsyncClient(timeout=120) as client:
        for turn in range(10_000):
            prompt = f"{SHARED}{number}/{turn} {BLOCK}"
            body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
            (await client.post(f"{url}/v1/completions", json=body)).raise_for_status()


async def test_every_panel_has_data_and_every_alert_is_evaluated(tmp_path: Path) -> None:
    model_dir = init_model("llama", tmp_path / "model", layers=2)
    flags = ["--model", str(model_dir), "--store", store_url(tmp_path / "kv"), "--prefill", "1", "--decode", "1"]
    flags += ["--path", "split", "--storage-nic-mbps", "40", "--max-context-tokens", "2048"]
    async with running_server(flags) as url:
        agents = [asyncio.create_task(_agent(url, number)) for number in range(3)]
        try:
            async with prometheus(tmp_path / "prometheus", url.removeprefix("http://")) as asked:
                await _until_scraped(asked, 20)
                assert not any(agent.done() for agent in agents)
                empty = await _without_data(asked)
                await _engines_count_once(asked, url.removeprefix("http://"))
                rules = (await asked.get("/rules")).json()["data"]["groups"][0]["rules"]
        finally:
            for agent in agents:
                agent.cancel()
            await asyncio.gather(*agents, return_exceptions=True)
    assert empty == {}
    assert {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in rules} == {
        alert.name: ("ok", "") for alert in ALERTS
    }
    critical = {alert.name for alert in ALERTS if alert.severity == "critical"}
    assert [rule["name"] for rule in rules if rule["state"] != "inactive" and rule["name"] in critical] == []


async def _without_data(asked: httpx.AsyncClient) -> dict[str, list[str]]:
    """Panels with what they ask in vain: nothing comes, or no number."""
    found: dict[str, list[str]] = {}
    for panel in PANELS:
        for query in panel.queries:
            result = await _ask(asked, query.expression.replace(W, RATE_INTERVAL))
            if os.environ.get("DUALPATH_SHOW"):
                print(panel.title, query.legend, [(r["metric"], r["value"][1]) for r in result])
            is_known = bool(result) and not any(math.isnan(float(series["value"][1])) for series in result)
            if not is_known and query.expression not in NOT_ALWAYS:
                found.setdefault(panel.title, []).append(query.expression)
    return found


async def _engines_count_once(asked: httpx.AsyncClient, target: str) -> None:
    """What engines do is the same whether one of two gateways is asked, or both."""
    for panel in PANELS:
        for query in panel.queries:
            if f"[{W}]" not in query.expression or OF_REQUESTS.search(query.expression):
                continue
            both = query.expression.replace(W, RATE_INTERVAL)
            alone = SERIES.sub(lambda name: f'{name[0]}{{instance="{target}"}}', both)
            found, expected = [_values(await _ask(asked, expression)) for expression in (both, alone)]
            assert found.keys() == expected.keys(), query
            for labels, value in found.items():  # the scrapes are up to a second apart
                assert value == pytest.approx(expected[labels], rel=0.3, abs=1e-3), (query, labels)


def _values(result: list[dict[str, Any]]) -> dict[str, float]:
    return {str(sorted(series["metric"].items())): float(series["value"][1]) for series in result}
