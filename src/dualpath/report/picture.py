"""One small picture of a rollout comparison: what each node's storage NIC did, with the reference and with our system.

``python -m dualpath.report.picture RESULT.json OUT.svg`` draws what ``dualpath bench rollout --json`` wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dualpath.report.css import SVG_CSS
from dualpath.report.figures import nic_panel, nodes_of
from dualpath.report.headline import chosen, title
from dualpath.report.svg import WIDTH

HEAD, CAPTION, PANEL, EDGE = 52, 24, 170, 12  # heights and the margin, in user units


def picture(report: Mapping[str, Any]) -> str:
    """A whole SVG file. It has a ground of its own, so that it is legible on a dark page too."""
    systems = report["systems"]
    ours = chosen(systems)
    names = [next(iter(systems)), *([ours] if ours else [])]
    height = HEAD + (CAPTION + PANEL) * len(names) + EDGE
    out = [_text(EDGE, 22, "What each node reads from storage", "head"), *_legend(nodes_of(report))]
    for i, name in enumerate(names):
        top = HEAD + (CAPTION + PANEL) * i
        out.append(_text(EDGE, top + 16, _caption(systems, name), "part"))
        panel = nic_panel(report, name, height=PANEL)
        out.append(panel.replace("<svg ", f'<svg x="0" y="{top + CAPTION}" width="{WIDTH}" height="{PANEL}" ', 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}">'
        f'<style>{SVG_CSS}</style><rect class="ground" width="{WIDTH}" height="{height}"/>{"".join(out)}</svg>\n'
    )


def _caption(systems: Mapping[str, Any], name: str) -> str:
    """With the ratio of the times, if it is not the reference's own."""
    reference, jct_s = next(iter(systems)), systems[name]["jct_s"]
    text = f"{title(name)}: all agents done after {jct_s:.1f} s"
    return text if name == reference else f"{text}, {systems[reference]['jct_s'] / jct_s:.2f} times as fast"


def _legend(nodes: Sequence[str]) -> list[str]:
    out, x = [], float(EDGE)
    for i, node in enumerate(nodes):
        out.append(f'<rect class="c{i % 8}" x="{x:g}" y="34" width="10" height="10" rx="2"/>')
        out.append(_text(x + 15, 43, node, "tick"))
        x += 30 + 6.5 * len(node)
    return out


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(text)}</text>'


def main(source: str, target: str) -> None:
    Path(target).write_text(picture(json.loads(Path(source).read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
