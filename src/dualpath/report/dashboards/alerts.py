"""Alert rules for Prometheus: the thresholds of ``dualpath why``, and what a server loses or breaks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dualpath.gateway.verdict.rules import BUSY_PER_ENGINE, FULL_SHARE, NIC_SHARE, SILENT_S, STALLED_S, WAITING

_W = "5m"
_STALL_SHARE = 0.3  # of a forward
_READ = f"rate(dualpath_nic_read_bytes_total[{_W}])"
_WRITTEN = f"rate(dualpath_storage_write_bytes_total[{_W}])"
_STORAGE_RATE = "max by (node) (dualpath_storage_nic_capacity_bytes_per_second)"


@dataclass(frozen=True, slots=True)
class Alert:
    """``hold``: how long it must be so before somebody is called."""

    name: str
    expression: str
    hold: str
    severity: str  # critical: requests fail or are lost; warning: slow
    summary: str
    remedy: str


def _where_waiting(expression: str, phase: str) -> str:
    """``expression`` where requests are in ``phase``, on average over a while."""
    waiting = f'sum(avg_over_time(dualpath_requests_in_phase{{phase="{phase}"}}[{_W}])) >= {WAITING:g}'
    return f"max by (role, node, engine) ({expression}) and on () ({waiting})"  # the same at each gateway: once


def _full(rate: str) -> str:
    """A node's storage NIC, by what goes through it one way in bytes per second."""
    return f"{rate} / on (node) {_STORAGE_RATE} >= {NIC_SHARE:g}"


ALERTS = (
    Alert(
        "DualPathGatewayDown", 'up{job=~".*dualpath.*"} == 0', "1m", "critical",
        "{{ $labels.instance }} does not answer", "the gateway's process, its host, the network",
    ),
    Alert(
        "DualPathNoEngines", "absent(dualpath_engine_requests) and on () (dualpath_requests_total)", "1m", "critical",
        "no engine answers", "dualpath status; the nodes' logs",
    ),
    Alert(
        "DualPathNodeSilent",
        f"dualpath_node_up == 0 or dualpath_node_silent_seconds >= {SILENT_S:g}", "15s", "critical",
        "{{ $labels.role }} node {{ $labels.node }} is lost or silent", "the node; its requests go on elsewhere",
    ),
    Alert(
        "DualPathStorageStalled",
        f"dualpath_storage_stalled_seconds >= {STALLED_S:g} or dualpath_store_stalled_seconds >= {STALLED_S:g}",
        "15s", "critical",
        "a storage call has had no answer for {{ $value | humanizeDuration }}", "the file system of that node",
    ),
    Alert(
        "DualPathBlocksDamaged",
        f"increase(dualpath_blocks_corrupt_total[{_W}]) + increase(dualpath_kv_corrupt_total[{_W}]) > 0",
        "0s", "warning",
        "{{ $labels.engine }} on {{ $labels.node }} found damaged KV; none was used", "a disk, NIC or memory module",
    ),
    Alert(
        "DualPathReadsFail", f"increase(dualpath_blocks_failed_total[{_W}]) > 0", "1m", "warning",
        "block reads fail on {{ $labels.node }}", "the file system of that node, [deadlines] storage_read_s",
    ),
    Alert(
        "DualPathStoreTakesNoWrites", "dualpath_store_accepts_writes == 0", "1m", "warning",
        "the store takes no new blocks: turns are computed again", "space on the store; its permissions",
    ),
    Alert(
        "DualPathTransfersLinger", "max_over_time(dualpath_transfers_lingering[1m]) > 0", "2m", "warning",
        "transfers of {{ $labels.engine }} do not end: their memory is out of use", "the network between nodes",
    ),
    Alert(
        "DualPathRequestsFail",
        f'sum(rate(dualpath_requests_total{{outcome="failed"}}[{_W}])) '
        f"> 0.01 * sum(rate(dualpath_requests_total[{_W}]))",
        "2m", "critical", "more than 1 % of requests fail", "/v1/dualpath/requests says with which error",
    ),
    Alert(
        "DualPathRejects", f'rate(dualpath_requests_total{{outcome="rejected"}}[{_W}]) > 0', "2m", "warning",
        "requests are turned away with 429", "more engines, or [scheduler] max_queued_requests",
    ),
    Alert(
        "DualPathDecodeMemoryBinds",
        _where_waiting(
            f'dualpath_device_kv_used_bytes{{role="decode"}} >= {FULL_SHARE:g} * dualpath_device_kv_bytes',
            "handed_over",
        ),
        "2m", "warning",
        "requests wait for device memory of {{ $labels.engine }}", "more decode engines or memory",
    ),
    Alert(
        "DualPathStagingBinds",
        _where_waiting(
            "dualpath_staging_slots_used + dualpath_staging_slots_aside "
            f">= {FULL_SHARE:g} * dualpath_staging_slots > 0",
            "placed",
        ),
        "2m", "warning",
        "requests wait for staging slots of {{ $labels.engine }}",
        "[memory] prefill_staging_bytes, decode_staging_bytes",
    ),
    Alert(
        "DualPathStorageNicBinds",
        f"{_full(f'max by (node) ({_READ})')} or {_full(f'sum by (node) (max by (node, engine) ({_WRITTEN}))')}",
        "2m", "warning",
        "the storage NIC of {{ $labels.node }} is at {{ $value | humanizePercentage }}", "--path split; more nodes",
    ),
    Alert(
        "DualPathPrefillBinds",
        'sum(avg_over_time(dualpath_requests_in_phase{phase=~"ready|prefilling"}['
        f'{_W}])) >= {BUSY_PER_ENGINE:g} * count(max by (engine) (dualpath_engine_requests{{role="prefill"}}))',
        "5m", "warning",
        "prefill engines compute all the time", "more prefill engines",
    ),
    Alert(
        "DualPathPrefillStalls",
        f"sum by (engine) (rate(dualpath_prefill_stall_seconds_total[{_W}])) "
        f"> {_STALL_SHARE:g} * sum by (engine) (rate(dualpath_prefill_forward_seconds_total[{_W}])) > 0",
        "5m", "warning",
        "prefill forwards of {{ $labels.engine }} wait for history", "the compute network between its node and others",
    ),
    Alert(
        "DualPathQueueGrows", f"min_over_time(dualpath_queued_requests[{_W}]) > 0", "5m", "warning",
        "requests have waited for engines for minutes", "more engines; dualpath why says which",
    ),
)  # fmt: skip


def alert_rules() -> dict[str, Any]:
    """A rule file's content."""
    rules = [
        {
            "alert": alert.name,
            "expr": alert.expression,
            "for": alert.hold,
            "labels": {"severity": alert.severity},
            "annotations": {"summary": alert.summary, "description": f"What helps: {alert.remedy}."},
        }
        for alert in ALERTS
    ]
    return {"groups": [{"name": "dualpath", "rules": rules}]}
