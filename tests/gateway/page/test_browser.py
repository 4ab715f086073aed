"""The page in a browser: what its panels say, and that it can be read in both themes, on a phone, and offline."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.e2e.browser import CHROMIUM, Page, browsing
from tests.gateway.conftest import Serving
from tests.gateway.fakes import FakeBackend

from dualpath.core.ids import EngineId, NodeId, RequestId
from dualpath.core.latency import Latencies
from dualpath.core.plan import Role
from dualpath.core.request import RequestRecord
from dualpath.core.stats import ClusterStats, EngineStats, NodeStats, StoreStats

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page was not looked at in a browser")
LONG = "node-" + "x" * 60
NODES = tuple(
    NodeStats(NodeId(name), role, (EngineId(f"{name}-e"),), host="h", is_up=up, silent_s=silent_s,
              storage_nic_bytes_per_s=rate, compute_nic_bytes_per_s=rate)
    for name, role, up, silent_s, rate in (
        ("p0", Role.PREFILL, True, 0.1, 1e6),
        (LONG, Role.PREFILL, False, 12.0, None),
        ("d0", Role.DECODE, True, 0.1, 1e6),
    )
)  # fmt: skip


class BusyBackend(FakeBackend):
    """Whatever a panel can show grows from look to look."""

    num_looks = 0
    reads = Latencies()

    async def stats(self) -> ClusterStats:
        self.num_looks += 1
        self.reads.add(0.02)
        engines = tuple(self._engine(node, self.num_looks) for node in NODES if node.is_up)
        phases = {"queued": 1, "placed": 4, "reading": 2, "handed_over": 3}
        return ClusterStats(
            engines, 1, 9, 7, NODES, StoreStats(), phases, block_tokens=64, block_bytes=64_000,
        )  # fmt: skip

    def _engine(self, node: NodeStats, looks: int) -> EngineStats:
        return EngineStats(
            node.engines[0], node.node_id, node.role,
            storage_read_bytes=500_000 * looks, nic_read_bytes=950_000 * looks, storage_write_bytes=10_000 * looks,
            kv_transfer_bytes={"decode_to_prefill": 20_000 * looks, "prefill_to_decode": 10_000 * looks},
            blocks_missing=looks, blocks_corrupt=5, storage_read_latency=self.reads.snapshot(),
            prefill_stall_s=(0.1 * looks, 0.02 * looks), prefill_push_s=0.01 * looks, prefill_forward_s=0.5 * looks,
            num_requests=5, read_queue_tokens=1500, staging_slots=8, staging_slots_used=6, staging_slots_aside=1,
            transfers_lingering=2, device_kv_bytes=1 << 20, device_kv_used_bytes=1 << 19,
        )  # fmt: skip

    def recent(self, limit: int) -> list[RequestRecord]:
        done = [
            RequestRecord(
                RequestId(f"r{number}"), 100.0 + number, 64, 32, 8, "split", outcome="finished",
                ttft_s=1.0, total_s=2.0, storage_read_bytes={"prefill": 1, "decode": 3},
                phases_s={"queued": 0.1, "placed": 0.2, "reading": 0.4, "ready": 0.1, "prefilling": 0.2,
                          "handed_over": 0.1, "decoding": 0.9},
            )
            for number in range(3 * self.num_looks + 3)
        ]  # fmt: skip
        failed = replace(done[0], request_id=RequestId("f"), outcome="failed", ttft_s=None, error="<i>gone</i>" * 20)
        return [failed, *reversed(done)][:limit]


async def _looked(page: Page, url: str) -> None:
    await page.call("Network.enable")
    await page.open(f"{url}/dualpath", width=1240)
    await page.until(
        '$("ttft").textContent.includes("mean of") && document.querySelectorAll("#requests .card").length > 5'
    )


async def test_every_panel_says_what_the_cluster_does(serving: Serving) -> None:
    async with serving(BusyBackend()) as url, browsing() as page:
        await _looked(page, url)
        text: dict[str, str] = await page.value(
            'Object.fromEntries([...document.querySelectorAll("section")].map((s) => [s.querySelector("h2").innerText,'
            " s.innerText + [...s.querySelectorAll('svg text, svg title')].map((t) => t.textContent).join('|')]))"
        )
        assert page.complaints == []
    assert text["What binds"].count("silent node") == 1
    picture = text["Nodes and networks now"]
    assert all(
        part in picture for part in ("storage: ", "compute network", "p0 reads: ", "lost 12 s", "to prefill", LONG)
    )
    assert "1.00 s, mean of" in text["Time to first token, by phase"]
    assert "400 ms" in text["Time to first token, by phase"] or "0.40 s" in text["Time to first token, by phase"]
    assert "busiest over mean: 1.50" in text["Storage NICs, of their rate"]  # two of three nodes read
    assert "of 8 Mbit/s" in text["Storage NICs, of their rate"]
    waiting = " ".join(text["Where requests are now"].split())
    assert "placed 4" in waiting
    assert "handed_over 3" in waiting
    assert "1.50 s, 1,500 tokens" in text["Reading queues"]
    assert "rate not known" in text["Reading queues"]
    assert "path split" in text["Paths, and bytes by side"]
    assert all(part in text["Prompt tokens by source"] for part in ("13 %", "38 %", "50 %"))  # of 64: 8, 24, 32
    assert all(part in text["Prefill stall per layer, of forward time"] for part in ("layer 0", "20 %", "4 %", "26 %"))
    assert text["Compute network"].count("Mbit/s") == 2
    assert "at most 25 ms" in text["Storage latency of one block"]
    assert "(10 since the engines' start)" in text["What goes wrong"]
    assert "4 lingering transfers" in text["What goes wrong"]
    memory = text["Staging slots and device memory"]
    assert all(
        part in memory
        for part in ("4 requests wait for staging", "3 for device", "7 of 8, 1 out of use", "0.5 of 1 MiB")
    )
    assert "<i>gone</i>" in text["Recent requests"]


async def test_it_loads_nothing_from_elsewhere(serving: Serving) -> None:
    async with serving(BusyBackend()) as url, browsing() as page:
        await _looked(page, url)
        loaded = await page.value('performance.getEntriesByType("resource").map((entry) => entry.name)')
    assert len(loaded) >= 2
    assert [name for name in loaded if not name.startswith((f"{url}/", "data:"))] == []


async def test_it_fits_a_phone(serving: Serving) -> None:
    async with serving(BusyBackend()) as url, browsing() as page:
        await _looked(page, url)
        await page.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        await asyncio.sleep(1.5)  # the picture is drawn anew with the next event
        assert await page.value("document.documentElement.scrollWidth") <= 400
        outside = await page.value(
            '[...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > 400.5)'
            ".map((e) => e.outerHTML.slice(0, 200))"
        )
        assert outside == []


# WCAG's: every text against what is painted behind it, every bar and line that says something against its card.
CONTRAST = """(() => {
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const parse = (text) => (text.match(/[0-9.]+/g) || []).map(Number);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] > 0) return c; } };
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05); };
  const bad = [];
  const check = (e, colour, least) => {
    const found = ratio(parse(colour), behind(e instanceof SVGElement ? e.closest("section") : e));
    if (found < least) bad.push(`${found.toFixed(2)}: ${e.outerHTML.slice(0, 120)}`); };
  for (const e of document.querySelectorAll("body *")) {
    if (!e.getClientRects().length) continue;
    const style = getComputedStyle(e), svg = e instanceof SVGElement;
    if ([...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()))
      check(e, svg ? style.fill : style.color, 4.5);
    if (e.matches(".track > i, .legend i")) check(e.closest("section, p"), style.backgroundColor, 3);
    if (e.matches("svg rect:not(.box):not(.rail), .flow:not(.idle)")) check(e, style.fill, 3);
  }
  return bad;
})()"""


@pytest.mark.parametrize("theme", ["light", "dark"])
async def test_it_can_be_read(theme: str, serving: Serving) -> None:
    async with serving(BusyBackend()) as url, browsing() as page:
        features: list[dict[str, Any]] = [{"name": "prefers-color-scheme", "value": theme}]
        await page.call("Emulation.setEmulatedMedia", features=features)
        await _looked(page, url)
        ground = await page.value("getComputedStyle(document.body).backgroundColor")
        assert ("255" in ground) == (theme == "light")
        assert await page.value(CONTRAST) == []
