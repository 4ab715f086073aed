"""``dualpath store``: look at a block store from outside a running server."""

from __future__ import annotations

import argparse
from typing import Any

from dualpath.core.errors import ConfigError


def add(verbs: Any) -> None:
    store = verbs.add_parser("store", help="list, verify or shrink stored KV blocks")
    actions = store.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    ls = actions.add_parser("ls", help="list what is stored, one line for each namespace")
    ls.add_argument("url", metavar="URL", help="e.g. file:///data/kv or s3://bucket/prefix")
    ls.add_argument("--blocks", action="store_true", help="list every block instead")
    ls.set_defaults(run=_ls)
    verify = actions.add_parser(
        "verify",
        help="read every block and check its header and checksum",
        description="Read every block and check it. Exit code 1 when damaged blocks are left.",
    )
    verify.add_argument("url", metavar="URL", help="e.g. file:///data/kv or s3://bucket/prefix")
    verify.add_argument("--delete", action="store_true", help="delete the blocks that are damaged")
    verify.set_defaults(run=_verify)
    gc = actions.add_parser(
        "gc",
        help="delete damaged blocks, a namespace, or what is beyond a size",
        description="Delete blocks with damaged headers, abandoned temporary files, and what the options say. A server "
        "that is running may go on: to it a deleted block is a miss.",
    )
    gc.add_argument("url", metavar="URL", help="e.g. file:///data/kv or s3://bucket/prefix")
    gc.add_argument("--namespace", metavar="HEX", help="delete all blocks of this namespace, as ls shows it")
    gc.add_argument(
        "--capacity-bytes", metavar="N", help="delete ends of chains, written longest ago first, until N bytes are left"
    )
    gc.add_argument("--dry-run", action="store_true", help="only say what would go")
    gc.set_defaults(run=_gc)


def _ls(arguments: argparse.Namespace) -> int:
    return _ls_blocks(arguments.url) if arguments.blocks else _ls_namespaces(arguments.url)


def _ls_namespaces(url: str) -> int:
    from dualpath.store.inspect import summarize

    summaries = summarize(url)
    if not summaries:
        print(f"{url}: no blocks")
        return 0
    print(f"{'namespace':32}  {'blocks':>8}  {'size':>10}  {'newest':>7}  {'oldest':>7}  geometry")
    for one in summaries:
        shapes = ", ".join(
            f"{g.num_layers} layers x {g.block_tokens} tokens x {g.bytes_per_token_layer} B" for g in one.geometries
        )
        damaged = f"  {one.num_damaged} damaged" if one.num_damaged else ""
        print(
            f"{one.namespace_digest.hex():32}  {one.num_blocks:>8}  {_bytes(one.num_bytes):>10}"
            f"  {_age(one.youngest_s):>7}  {_age(one.oldest_s):>7}  {shapes}{damaged}"
        )
    return 0


def _ls_blocks(url: str) -> int:
    from dualpath.store.inspect import iter_rows

    print(f"{'namespace':32}  {'block':32}  {'size':>10}  {'age':>7}  tokens")
    for row in iter_rows(url):
        tokens = row.problem if row.header is None else str(row.header.num_tokens)
        size, age = _bytes(row.num_bytes), _age(row.age_s)
        print(f"{row.namespace_digest.hex():32}  {row.key.hex():32}  {size:>10}  {age:>7}  {tokens}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from dualpath.store.inspect import summarize, verify_blocks

    num_blocks = sum(one.num_blocks for one in summarize(arguments.url))
    problems, num_deleted = 0, 0
    for problem in verify_blocks(arguments.url, delete=arguments.delete):
        problems += 1
        num_deleted += problem.is_deleted
        print(f"{problem.row.path}: {problem.reason}{' (deleted)' if problem.is_deleted else ''}")
    deleted = f", {num_deleted} deleted" if arguments.delete else ""
    print(f"{num_blocks} blocks read, {problems} damaged{deleted}")
    return 1 if problems > num_deleted else 0


def _gc(arguments: argparse.Namespace) -> int:
    from dualpath.store.gc import collect

    done = collect(
        arguments.url,
        capacity_bytes=_capacity(arguments.capacity_bytes),
        namespace=_namespace(arguments.namespace),
        dry_run=arguments.dry_run,
    )
    verb = "would be deleted" if arguments.dry_run else "deleted"
    print(
        f"{done.num_deleted} of {done.num_blocks} blocks {verb}, {_bytes(done.deleted_bytes)} of "
        f"{_bytes(done.num_bytes)}; {done.num_swept} abandoned temporary files removed"
    )
    return 0


def _capacity(text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise ConfigError(f"--capacity-bytes must be a number of bytes, not {text!r}")
    return None if text is None else int(text)


def _namespace(text: str | None) -> bytes | None:
    from dualpath.store.folder import parse_namespace

    digest = None if text is None else parse_namespace(text)
    if text is not None and digest is None:
        raise ConfigError(f"--namespace must be 32 hexadecimal digits, not {text!r}")
    return digest


def _bytes(num_bytes: int) -> str:
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if num_bytes >= 1024**power:
            return f"{num_bytes / 1024**power:.1f} {unit}"
    return f"{num_bytes} B"


def _age(seconds: float) -> str:
    for length_s, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
