"""The dashboard's panels: what each shows and the PromQL that it shows it by.

Several gateways may be scraped. Of requests each counts its own, so they are added up; engines, nodes and the store are
the same at each, so each engine is taken once before anything is added.
"""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.gateway.verdict.rules import NIC_SHARE

W = "$__rate_interval"  # Grafana's: long enough for a rate, whatever the scrape interval


@dataclass(frozen=True, slots=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """``kind``: Grafana's name of it. ``unit``: too. ``threshold``: a line across."""

    title: str
    text: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: str = "timeseries"
    is_stacked: bool = False
    threshold: float | None = None


_TTFT_PHASES = "queued|placed|reading|ready|prefilling"
_NIC_READ = f"max by (node) (rate(dualpath_nic_read_bytes_total[{W}]))"
_CAPACITY = "max by (node) (dualpath_storage_nic_capacity_bytes_per_second)"
_TOKENS_PER_BYTE = "scalar(max(dualpath_block_tokens)) / scalar(max(dualpath_block_bytes))"


def _each(gauge: str, *labels: str) -> str:
    """Once for each engine, and for each value of ``labels``."""
    return f"max by ({', '.join(('role', 'node', 'engine', *labels))}) ({gauge})"


def _rate(counter: str, *labels: str) -> str:
    return _each(f"rate({counter}[{W}])", *labels)


PANELS = (
    Panel(
        "Time to first token, by phase",
        "Where the mean request spends its time before its first token. queued: engines; placed: staging slots; "
        "reading: storage; ready: other requests' prefills.",
        (
            Query(
                f'sum by (phase) (rate(dualpath_phase_seconds_sum{{phase=~"{_TTFT_PHASES}"}}[{W}])) '
                f"/ ignoring (phase) group_left sum(rate(dualpath_ttft_seconds_count[{W}]))",
                "{{phase}}",
            ),
        ),
        "s",
        is_stacked=True,
    ),
    Panel(
        "Time to first token, time per token",
        "Of requests that ended.",
        (
            Query(f"histogram_quantile(0.5, sum by (le) (rate(dualpath_ttft_seconds_bucket[{W}])))", "TTFT p50"),
            Query(f"histogram_quantile(0.99, sum by (le) (rate(dualpath_ttft_seconds_bucket[{W}])))", "TTFT p99"),
            Query(f"histogram_quantile(0.5, sum by (le) (rate(dualpath_tpot_seconds_bucket[{W}])))", "TPOT p50"),
            Query(f"histogram_quantile(0.99, sum by (le) (rate(dualpath_tpot_seconds_bucket[{W}])))", "TPOT p99"),
        ),
        "s",
    ),
    Panel(
        "Storage NICs, of their rate",
        "Reads of each node's NIC over its configured rate. Full on one node while others are idle: --path split.",
        (
            Query(f"{_NIC_READ} / {_CAPACITY}", "{{node}}"),
            Query(f"max({_NIC_READ}) / avg({_NIC_READ})", "max / avg"),
        ),
        "percentunit",
        threshold=NIC_SHARE,
    ),
    Panel(
        "Reading queues",
        "How long each engine's queue of storage reads would take at its NIC's rate.",
        (
            Query(
                f"sum by (role, node) ({_each('dualpath_read_queue_tokens')}) / ({_TOKENS_PER_BYTE}) "
                "/ on (node) group_left max by (node) (dualpath_storage_nic_capacity_bytes_per_second)",
                "{{role}} {{node}}",
            ),
        ),
        "s",
    ),
    Panel(
        "Bytes by path",
        "What storage gives each side.",
        (
            Query(f"sum by (role) ({_rate('dualpath_storage_read_bytes_total')})", "read, {{role}}"),
            Query(f"sum by (role) ({_rate('dualpath_storage_write_bytes_total')})", "written, {{role}}"),
        ),
        "Bps",
        is_stacked=True,
    ),
    Panel(
        "Prompt tokens by source",
        "Read by the prefill side, read by the decode side, already there, or computed.",
        (Query(f"sum by (source) (rate(dualpath_prompt_tokens_by_source_total[{W}]))", "{{source}}"),),
        "short",
        is_stacked=True,
    ),
    Panel(
        "Prefill stall per layer, of forward time",
        "How much of their time forwards wait for a layer's history. Layer 0 waits for the first load.",
        (
            Query(
                f"sum by (layer) ({_rate('dualpath_prefill_stall_seconds_total', 'layer')}) "
                f"/ ignoring (layer) group_left sum({_rate('dualpath_prefill_forward_seconds_total')})",
                "layer {{layer}}",
            ),
        ),
        "percentunit",
        is_stacked=True,
    ),
    Panel(
        "Compute network",
        "KV between engines, counted where a transfer was started.",
        (Query(f"max by (direction) (rate(dualpath_kv_transfer_bytes_total[{W}]))", "{{direction}}"),),
        "Bps",
    ),
    Panel(
        "Staging slots and device memory in use",
        "Of 1. Full while requests wait in placed or handed_over: it binds.",
        (
            Query(
                _each("(dualpath_staging_slots_used + dualpath_staging_slots_aside) / (dualpath_staging_slots > 0)"),
                "slots {{engine}}",
            ),
            Query(
                _each('dualpath_device_kv_used_bytes{role="decode"} / (dualpath_device_kv_bytes{role="decode"} > 0)'),
                "device {{engine}}",
            ),
        ),
        "percentunit",
        threshold=1.0,
    ),
    Panel(
        "Requests by phase",
        "How many are where now.",
        (Query("sum by (phase) (dualpath_requests_in_phase)", "{{phase}}"),),
        is_stacked=True,
    ),
    Panel(
        "Storage latency of one block",
        "From its start, pacing and checksums included.",
        tuple(
            Query(
                f"histogram_quantile({share}, sum by (le) "
                f"({_rate(f'dualpath_storage_{way}_latency_seconds_bucket', 'le')}))",
                f"{way} {name}",
            )
            for way in ("read", "write")
            for share, name in ((0.5, "p50"), (0.99, "p99"))
        ),
        "s",
    ),
    Panel(
        "What goes wrong",
        "Per second; and what is out of use now.",
        (
            Query(f"sum({_rate('dualpath_blocks_missing_total')})", "missing"),
            Query(f"sum({_rate('dualpath_blocks_corrupt_total')})", "corrupt on storage"),
            Query(f"sum({_rate('dualpath_kv_corrupt_total')})", "corrupt on the way"),
            Query(f"sum({_rate('dualpath_blocks_failed_total')})", "reads failed"),
            Query(f"sum({_rate('dualpath_blocks_not_persisted_total')})", "not written"),
            Query(f"sum(rate(dualpath_request_retries_total[{W}]))", "requests resumed"),
            Query(f"sum({_each('dualpath_transfers_lingering')})", "transfers lingering (now)"),
        ),
    ),
    Panel(
        "The store",
        "Bytes.",
        (
            Query("max(dualpath_store_used_bytes)", "used"),
            Query("max(dualpath_store_capacity_bytes)", "capacity"),
            Query("max(dualpath_store_free_bytes)", "free on the file system"),
        ),
        "bytes",
    ),
    Panel(
        "What binds",
        "Our alerts that hold now: the thresholds of dualpath why. The live page is /dualpath on the gateway's port.",
        (Query('ALERTS{alertname=~"DualPath.*"}', "{{alertname}} {{node}} {{engine}}"),),
        kind="table",
    ),
)
