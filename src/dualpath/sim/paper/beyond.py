"""What the paper leaves open: split reads, tool time, 1M-token contexts, faster GPUs, two storage NICs. No targets."""

from __future__ import annotations

from dualpath.sim.paper.constants import model_spec
from dualpath.sim.paper.experiment import Experiment, Outcomes
from dualpath.sim.paper.rows import Bars, Report, Row
from dualpath.sim.paper.run import Outcome, Run, Setting

SPLIT_APS = {"low": 0.02, "high": 0.2}  # agents per second on 1P2D with Qwen2.5-32B, whose reads are large
ONLINE: tuple[Setting, ...] = (("workload.warm_up_s", 600.0), ("workload.duration_s", 300.0))
TOOL_S = (0.0, 5.0, 20.0)
MILLION: tuple[Setting, ...] = (
    ("workload.scale", 20.0),
    ("workload.generate_scale", 1 / 20),
    ("cluster.staging_bytes", 1_000_000_000_000),
    ("cluster.decode_kv_bytes", 120_000_000_000),
)
LONG_QUOTA_S = 3.0
B200_FLOPS, B200_HBM = 4500 / 1979, 8.0 / 3.35  # over Hopper: FP8 FLOP/s, memory bandwidth (data sheets)
TWO_NICS: tuple[Setting, ...] = (("cluster.storage_nics_per_node", 2),)


def _split_run(system: str, aps: float) -> Run:
    return Run("32B", system, 1, 2, aps=aps, settings=ONLINE)


def _split_runs(_: bool) -> list[Run]:
    return [_split_run(system, aps) for aps in SPLIT_APS.values() for system in ("shorter", "split")]


def _split(outcomes: Outcomes, _: bool) -> Report:
    rows = []
    for load, aps in SPLIT_APS.items():
        shorter, split = (outcomes[_split_run(system, aps)] for system in ("shorter", "split"))
        gain = 100 * ((split.ttft_s or 0) / (shorter.ttft_s or 1) - 1)
        text = f"TTFT {shorter.ttft_s or 0:.3f} s to {split.ttft_s or 0:.3f} s at {aps:g} APS, 1P2D"
        rows.append(
            Row(f"beyond_split.{load}", f"split against shorter, TTFT, {load} load", "%", None, gain, False, text)
        )
    return Report(rows, text="Qwen2.5-32B: 262 kB of KV a token, so that a mean read takes 0.2 s of a NIC, not 0.03 s.")


def _tool_run(think_s: float) -> Run:
    warm_up = 900.0 + 157 * think_s
    window = (("workload.warm_up_s", warm_up), ("workload.duration_s", 300.0), ("workload.think_s", think_s))
    return Run("660B", "shorter", 1, 2, aps=0.05, settings=window)


def _tool(outcomes: Outcomes, _: bool) -> Report:
    rows = []
    base = outcomes[_tool_run(0.0)]
    for think_s in TOOL_S:
        one = outcomes[_tool_run(think_s)]
        longer = (_turn_s(one) + think_s) / max(_turn_s(base), 1e-9)
        text = (
            f"{one.working_set_bytes / max(base.working_set_bytes, 1):.1f} times that without tools, where a turn with"
            f" its tool takes {longer:.1f} times as long; TTFT {one.ttft_s or 0:.2f} s"
        )
        what = f"working set, {think_s:g} s of tool time a turn"
        rows.append(Row(f"beyond_tool_time.{think_s:g}", what, "GB", None, one.working_set_bytes / 1e9, False, text))
    return Report(rows, text="660B, 1P2D, 0.05 APS: a storage tier must hold what idle agents will come back for.")


def _turn_s(one: Outcome) -> float:
    return sum((one.phases_s or {}).values())


def _million_run(system: str, quota_s: float | None = None) -> Run:
    quota: tuple[Setting, ...] = () if quota_s is None else (("scheduler.quota_s", quota_s),)
    return Run("660B", system, 1, 2, 96, settings=(*MILLION, *quota))


def _million_runs(_: bool) -> list[Run]:
    runs = [_million_run(system) for system in ("basic", "layerwise", "shorter")]
    return [*runs, _million_run("shorter", LONG_QUOTA_S)]


def _million(outcomes: Outcomes, _: bool) -> Report:
    basic, layers, shorter, longer = (outcomes[run] for run in _million_runs(False))
    alone = None if basic.impossible else basic.jct_s
    why = "the quota cuts a turn into many forwards, and each loads the whole history again"
    rows = [
        Row("beyond_1m.basic", "Basic, JCT", "s", None, alone, False, basic.impossible),
        Row("beyond_1m.gain", "DualPath against layerwise prefill, JCT, quota 0.3 s as published", "times", None,
            layers.jct_s / shorter.jct_s, False, f"{layers.jct_s:.0f} s to {shorter.jct_s:.0f} s: {why}"),
        Row("beyond_1m.quota", f"DualPath against layerwise prefill, JCT, quota {LONG_QUOTA_S:g} s", "times", None,
            layers.jct_s / longer.jct_s, False, f"{layers.jct_s:.0f} s to {longer.jct_s:.0f} s"),
    ]  # fmt: skip
    text = (
        "660B, 1P2D, 96 agents, all turns at 20 times the lengths of the 64K trace but generations (up to 1.04M tokens,"
        " 8.6K appended a turn), 1 TB staging, 120 GB decode HBM."
    )
    return Report(rows, text=text)


def _b200_settings() -> tuple[Setting, ...]:
    """Compute faster by FLOP/s, decoding by HBM; launches and NICs as they are."""
    model = model_spec("660B").model
    return (
        ("model.prefill_token_s", model.prefill_token_s / B200_FLOPS),
        ("model.prefill_pair_s", model.prefill_pair_s / B200_FLOPS),
        ("model.prefill_index_pair_s", model.prefill_index_pair_s / B200_FLOPS),
        ("model.prefill_group_token_s", model.prefill_group_token_s / B200_FLOPS),
        ("model.prefill_base_s", model.prefill_base_s / B200_FLOPS),
        ("model.decode_base_s", model.decode_base_s / B200_HBM),
        ("model.decode_per_request_s", model.decode_per_request_s / B200_HBM),
        ("cluster.decode_kv_bytes", 150_000_000_000),
        ("cluster.prefill_kv_bytes", 90_000_000_000),
    )


def _node_run(settings: tuple[Setting, ...], system: str) -> Run:
    return Run("660B", system, 1, 2, 256, settings=settings)


def _nodes_runs(_: bool) -> list[Run]:
    return [_node_run(s, system) for s in (_b200_settings(), _two_on_b200()) for system in ("layerwise", "shorter")]


def _two_on_b200() -> tuple[Setting, ...]:
    return (*_b200_settings(), *TWO_NICS)


def _gain(outcomes: Outcomes, settings: tuple[Setting, ...]) -> tuple[float, str]:
    layers, shorter = (outcomes[_node_run(settings, system)].jct_s for system in ("layerwise", "shorter"))
    return layers / shorter, f"{layers:.0f} s to {shorter:.0f} s"


def _b200(outcomes: Outcomes, _: bool) -> Report:
    gain, text = _gain(outcomes, _b200_settings())
    what = "B200 nodes, one SNIC: reading on both sides against one, JCT"
    rows = [Row("beyond_b200.gain", what, "times", None, gain, False, f"{text}; both with layerwise prefill")]
    return Report(rows, text="660B, 1P2D, 256 agents. Launch costs are scaled as compute is, an assumption.")


def _snics(outcomes: Outcomes, _: bool) -> Report:
    what = "B200 nodes, two SNICs: both sides against one, JCT"
    one, two = _gain(outcomes, _b200_settings()), _gain(outcomes, _two_on_b200())
    rows = [
        Row(
            "beyond_two_snics.gain",
            what,
            "times",
            None,
            two[0],
            False,
            two[1],
        )
    ]
    bars = {"one SNIC": one[0], "two SNICs": two[0]}
    return Report(rows, [Bars("Reading on both sides against one, JCT", "times", {}, bars)])


EXPERIMENTS = (
    Experiment("beyond_split", "Beyond: split reads", _split_runs, _split),
    Experiment("beyond_tool_time", "Beyond: tool time", lambda _: [_tool_run(s) for s in TOOL_S], _tool),
    Experiment("beyond_1m", "Beyond: contexts of 1M tokens", _million_runs, _million),
    Experiment("beyond_b200", "Beyond: B200 nodes", _nodes_runs, _b200),
    Experiment("beyond_two_snics", "Beyond: two storage NICs a node", _nodes_runs, _snics),
)  # fmt: skip
