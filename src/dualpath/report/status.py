"""What ``dualpath status`` shows: nodes, engines, queues and NICs of a running system, asked twice for rates."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from dualpath.core.errors import ConfigError
from dualpath.gateway.verdict.client import STATS, ask


def read_status(urls: Sequence[str], api_key: str | None, interval_s: float) -> dict[str, Any]:
    """``/v1/dualpath/stats`` with each node's NIC traffic in bytes per second, measured over ``interval_s``.

    ``urls``: of a system's gateways, of which one has to answer. Requests are those of all that do; engines are the
    same at each. Raises ConfigError as ``ask`` does.
    """
    _, first, start_s = next(_answers(urls, api_key))
    before = {engine["engine_id"]: engine for engine in first["engines"]}
    time.sleep(interval_s)
    found = list(_answers(urls, api_key))
    _, last, end_s = found[0]
    took_s = end_s - start_s
    for node in last["nodes"]:
        engines = [e for e in last["engines"] if e["node_id"] == node["node_id"]]
        for name in ("storage_read", "storage_write", "kv_transfer"):
            moved = sum(_moved(e, name) - _moved(before.get(e["engine_id"], {}), name) for e in engines)
            node[f"{name}_bytes_per_s"] = round(max(0, moved) / took_s)  # less than before: it was restarted
    for name in ("num_running_requests", "num_queued_requests"):
        last[name] = sum(stats[name] for _, stats, _ in found)
    answering = [url for url, _, _ in found]
    gateways = [{"url": url, "answers": url in answering} for url in urls]
    return {"url": urls[0], "gateways": gateways, "interval_s": round(took_s, 3), **last}


def _answers(urls: Sequence[str], api_key: str | None) -> Iterator[tuple[str, dict[str, Any], float]]:
    """(URL, its answer, when it came) of those that answer. Raises ConfigError at the end where none does."""
    errors = []
    for url in urls:
        try:
            yield url, ask(url, STATS, api_key, dict[str, Any]), time.monotonic()
        except ConfigError as error:
            errors.append(error)
    if len(errors) == len(urls):
        raise errors[-1]


def _moved(engine: Mapping[str, Any], name: str) -> int:
    value = engine.get(f"{name}_bytes", 0)
    return sum(value.values()) if isinstance(value, dict) else int(value)


def show(status: Mapping[str, Any], console: Console) -> None:
    paused = "; paused until POST /resume" if status.get("is_paused") else ""
    console.print(
        f"{_gateways(status['gateways'])}  {status['num_running_requests']} requests running, "
        f"{status['num_queued_requests']} queued, {status['index_blocks']} blocks stored{paused}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(_nodes(status["nodes"]))
    console.print(_engines(status["engines"]))


def _gateways(gateways: Sequence[Mapping[str, Any]]) -> str:
    return " ".join(one["url"] if one["answers"] else f"{one['url']} (does not answer)" for one in gateways)


def _nodes(nodes: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("node", "role", "state", "host", "pid", "storage NIC", "read", "written", "compute NIC", "KV moved")
    table = _table(columns, "Mbit/s by NIC: what it can, what it does")
    for node in nodes:
        state = "up" if node["is_up"] else f"lost {node['silent_s']:.0f} s"
        table.add_row(
            node["node_id"],
            node["role"],
            state,
            node["host"] or "here",
            str(node["pid"] or ""),
            _nic(node["storage_nic"], node["storage_nic_bytes_per_s"]),
            _mbps(node["storage_read_bytes_per_s"]),
            _mbps(node["storage_write_bytes_per_s"]),
            _nic(node["compute_nic"], node["compute_nic_bytes_per_s"]),
            _mbps(node["kv_transfer_bytes_per_s"]),
        )
    return table


def _engines(engines: Sequence[Mapping[str, Any]]) -> Table:
    columns = ("engine", "node", "requests", "read queue, tokens", "staging slots", "device KV", "forwards")
    table = _table(columns, None)
    for e in engines:
        kv = f"{e['device_kv_used_bytes'] / 2**20:.0f} of {e['device_kv_bytes'] / 2**20:.0f} MiB"
        slots = f"{e['staging_slots_used']} of {e['staging_slots']}"
        queue, forwards = str(e["read_queue_tokens"]), str(e["num_forwards"])
        table.add_row(e["engine_id"], e["node_id"], str(e["num_requests"]), queue, slots, kv, forwards)
    return table


def _table(columns: Sequence[str], caption: str | None) -> Table:
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="fold")
    return table


def _nic(name: str | None, bytes_per_s: float | None) -> str:
    return " ".join(part for part in (name, None if bytes_per_s is None else _mbps(bytes_per_s)) if part) or "-"


def _mbps(bytes_per_s: float) -> str:
    return f"{bytes_per_s * 8 / 1e6:,.0f}"
