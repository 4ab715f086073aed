"""Each staged cluster is called by its name, by the verdict and on the page.

They take a minute and a half together, so they run only where DUALPATH_STAGED names a directory; the page's screenshots
are written into it where there is a Chromium.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from dualpath.models.init import init_model
from tests.e2e.browser import CHROMIUM, browsing
from tests.e2e.staged import STAGES, staged

OUT = os.environ.get("DUALPATH_STAGED")
pytestmark = [
    pytest.mark.skipif(OUT is None, reason="DUALPATH_STAGED names no directory"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    os.makedirs(OUT or ".", exist_ok=True)
    return init_model("llama", tmp_path_factory.mktemp("staged") / "model", layers=2)


@pytest.mark.parametrize("name", STAGES)
async def test_the_verdict_and_the_page_name_it(name: str, model_dir: Path, tmp_path: Path) -> None:
    stage = STAGES[name]
    async with staged(stage, model_dir, tmp_path) as it:
        looking = asyncio.create_task(_page(it.url, name))
        await asyncio.sleep(5.0)
        verdict = await it.verdict(8.0)
        shown = await looking
    assert verdict.state == "binds", verdict
    assert verdict.findings[0].resource == stage.resource, verdict
    assert stage.where in verdict.findings[0].where
    assert shown is None or shown.startswith(f"{stage.resource}: ")


async def _page(url: str, name: str) -> str | None:
    """What stands under "What binds" after the page has watched for a while; None without a browser."""
    if CHROMIUM is None:
        return None
    assert OUT is not None
    async with browsing() as page:
        await page.open(f"{url}/dualpath")
        await asyncio.sleep(14.0)
        await page.screenshot(Path(OUT) / f"{name}.png")
        said = await page.value('document.querySelector("#verdict").textContent')
        await page.call("Emulation.setDeviceMetricsOverride", width=400, height=800, deviceScaleFactor=1, mobile=True)
        await asyncio.sleep(1.5)
        assert await page.value("document.documentElement.scrollWidth") <= 400
        assert page.complaints == []
        return str(said)
