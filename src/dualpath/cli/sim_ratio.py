"""``dualpath sim ratio``: how many bytes of KV a model loads for the work it does, as a table and as JSON."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualpath.cli.command import add_command
from dualpath.config.fields import Options, setting
from dualpath.core.errors import ConfigError
from dualpath.report.outputs import check_outputs, write_output

if TYPE_CHECKING:
    from dualpath.sim.catalogue.convention import Convention
    from dualpath.sim.ratio import RatioPoint, RatioRow

STDOUT = "-"
NOTE_WIDTH = 110  # characters
_UNITS = {"k": 1024, "m": 1024**2}
_TOKENS = {"pattern": r"0*[1-9][0-9]*[KkMm]?", "pattern_means": "a number of tokens such as 16384, 16K or 1M"}
LATENT_MODELS = ("DeepSeek-V3", "DeepSeek-V3.2")  # of Table 1
LATENT_NOTE = (
    "DeepSeek rows: the paper does not say what it counts, and its figures do not determine it. What is counted here "
    "is stated above; over all such conventions a figure lies in its range."
)


class _Options(Options):
    """The cache-compute ratio: GB of stored KV to load for each PFLOP of prefill (both powers of ten)."""

    model: tuple[str, ...] = setting(
        (),
        many="words",
        metavar="NAME|FILE",
        none_means="the models of the paper's Table 1",
        help="catalogue names, config.json files or directories with one",
    )
    context: tuple[str, ...] = setting(("16K", "64K"), many="commas", metavar="TOKENS", help="cached tokens", **_TOKENS)
    append: str = setting("429", metavar="TOKENS", help="new tokens; Table 1 has 429", **_TOKENS)
    kv_dtype: str | None = setting(None, metavar="DTYPE", none_means="each model's usual one", help="bf16, fp16 or fp8")
    convention: str = setting(
        "table1",
        metavar="table1|physical",
        help="what is counted: as in the paper's Table 1, or what this engine moves and computes",
    )
    json: str | None = setting(None, metavar="OUT|-", help="write the results for programs; - prints them instead")


def add(actions: Any) -> None:
    add_command(actions, "ratio", "GB of KV to load per PFLOP to compute, by model and context", _run, _Options)


def _run(options: _Options) -> int:
    from dualpath.sim.catalogue.convention import CONVENTIONS
    from dualpath.sim.catalogue.find import find_model
    from dualpath.sim.ratio import TABLE_1_RATIOS, ratio_row

    if options.convention not in CONVENTIONS:
        raise ConfigError(f"--convention must be one of {', '.join(CONVENTIONS)}, not {options.convention!r}")
    if options.json not in (None, STDOUT):
        check_outputs({"--json": Path(options.json)})
    convention = CONVENTIONS[options.convention]
    contexts = [_tokens(part) for part in options.context]
    num_new = _tokens(options.append)
    names = options.model or list(TABLE_1_RATIOS)
    rows = [ratio_row(find_model(name), options.kv_dtype, contexts, num_new, convention) for name in names]
    report = {
        "convention": {"name": options.convention, **convention.to_json()},
        "append_tokens": num_new,
        "rows": [_row_json(row) for row in rows],
    }
    if options.json == STDOUT:
        print(json.dumps(report, indent=2))
        return 0
    if options.json is not None:
        write_output(Path(options.json), json.dumps(report, indent=2) + "\n")
    print("\n".join(format_rows(rows, num_new, convention)))
    return 0


def format_rows(rows: list[RatioRow], num_new: int, convention: Convention) -> list[str]:
    """The lines of an aligned table, and under it what was counted."""
    width = max(len("model"), *(len(row.model.name) for row in rows))
    contexts = [point.num_cached for point in rows[0].points]
    head = f"{'model':{width}}  KV    KV B/token  active"
    for context in contexts:
        head += f"  {_short(context):>8}  {'range':>13}  {'paper':>13}"
    lines = [f"GB of KV per PFLOP of prefill, {num_new} new tokens after a context of:", head]
    lines += [_line(row, width) for row in rows]
    lines += textwrap.wrap(f"counted: {convention.describe()}", NOTE_WIDTH)
    if any(row.model.name in LATENT_MODELS for row in rows):
        lines += textwrap.wrap(LATENT_NOTE, NOTE_WIDTH)
    return lines


def _line(row: RatioRow, width: int) -> str:
    line = f"{row.model.name:{width}}  {row.kv_dtype:4}  {row.kv_bytes_per_token:>10,}"
    line += f"  {row.model.active_params / 1e9:>5.2f}B"
    for point in row.points:
        bounds = f"{point.lowest:.1f}-{point.highest:.1f}"
        line += f"  {point.gb_per_pflop:>8.2f}  {bounds:>13}  {_paper(point):>13}"
    return line


def _paper(point: RatioPoint) -> str:
    return "-" if point.rel_error is None else f"{point.paper:g} ({point.rel_error:+.1%})"


def _row_json(row: RatioRow) -> dict[str, Any]:
    return {
        "model": row.model.name,
        "source": row.model.source,
        "kv_dtype": row.kv_dtype,
        "kv_bytes_per_token": row.kv_bytes_per_token,
        "active_params": row.model.active_params,
        "points": [_point_json(point) for point in row.points],
    }


def _point_json(point: RatioPoint) -> dict[str, Any]:
    return {
        "context_tokens": point.num_cached,
        "gb_per_pflop": point.gb_per_pflop,
        "kv_bytes": point.kv_bytes,
        "flops": {**point.flops.to_json(), "total": point.flops.total},
        "over_conventions": {"lowest": point.lowest, "highest": point.highest},
        "paper_gb_per_pflop": point.paper,
        "rel_error": point.rel_error,
    }


def _tokens(text: str) -> int:
    unit = _UNITS.get(text[-1].lower())
    return int(text) if unit is None else int(text[:-1]) * unit


def _short(tokens: int) -> str:
    for unit, letter in ((1024**2, "M"), (1024, "K")):
        if tokens % unit == 0:
            return f"{tokens // unit}{letter}"
    return str(tokens)
