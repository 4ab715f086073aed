"""``dualpath store``: look at a block store from outside a running server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dualpath.cli.command import add_command, add_group
from dualpath.config.fields import Options, setting

if TYPE_CHECKING:
    from dualpath.store.inspect import NamespaceSummary


class _Options(Options):
    """Which store."""

    url: str = setting(positional=True, metavar="URL", help="e.g. file:///data/kv or s3://bucket/prefix")


class _LsOptions(_Options):
    """List what is stored, one line for each namespace."""

    blocks: bool = setting(False, help="list every block instead")


class _VerifyOptions(_Options):
    """Read every block and check it. Exit code 1 when damaged blocks are left."""

    delete: bool = setting(False, help="delete the blocks that are damaged")


class _GcOptions(_Options):
    """Delete blocks with damaged headers, abandoned temporary files, and what the options say. A server that is running
    may go on: it says in the store which weights' blocks it uses, and those go beyond a size only, after all others.
    To it a deleted block is a miss.
    """

    namespace: str | None = setting(
        None,
        metavar="HEX",
        pattern="[0-9a-f]{32}",
        pattern_means="32 hexadecimal digits",
        help="delete all blocks of this namespace, as ls shows it; an error if a server uses it",
    )
    keep_latest: int | None = setting(
        None,
        metavar="N",
        minimum=0,
        help="delete all namespaces but the N used last of each geometry, and those that a server uses",
    )
    capacity_bytes: int | None = setting(
        None, metavar="N", help="delete ends of chains, written longest ago first, until N bytes are left"
    )
    dry_run: bool = setting(False, help="only say what would go")


def add(verbs: Any) -> None:
    actions = add_group(verbs, "store", "list, verify or shrink stored KV blocks")
    add_command(actions, "ls", "list what is stored, one line for each namespace", _ls, _LsOptions)
    add_command(actions, "verify", "read every block and check its header and checksum", _verify, _VerifyOptions)
    add_command(actions, "gc", "delete damaged blocks, a namespace, or what is beyond a size", _gc, _GcOptions)


def _ls(options: _LsOptions) -> int:
    return _ls_blocks(options.url) if options.blocks else _ls_namespaces(options.url)


def _ls_namespaces(url: str) -> int:
    from dualpath.store.inspect import summarize

    summaries = summarize(url)
    if not summaries:
        print(f"{url}: no blocks")
        return 0
    print(
        f"{'namespace':32}  {'blocks':>8}  {'size':>10}  {'newest':>7}  {'oldest':>7}  {'used':>7}  weights, geometry"
    )
    for one in summaries:
        shapes = ", ".join(
            f"{g.num_layers} layers x {g.block_tokens} tokens x {g.bytes_per_token_layer} B" for g in one.geometries
        )
        damaged = f"  {one.num_damaged} damaged" if one.num_damaged else ""
        print(
            f"{one.namespace_digest.hex():32}  {one.num_blocks:>8}  {_bytes(one.num_bytes):>10}"
            f"  {_age(one.youngest_s):>7}  {_age(one.oldest_s):>7}  {_weights(one)}  {shapes}{damaged}"
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


def _weights(namespace: NamespaceSummary) -> str:
    """How long ago they were used, and whose blocks they are."""
    note = namespace.note
    used = "now" if namespace.is_in_use else _age(namespace.unused_s)
    return f"{used:>7}  " + ("-" if note is None else f"{note.model} {note.version} ({note.directory})")


def _verify(options: _VerifyOptions) -> int:
    from dualpath.store.inspect import summarize, verify_blocks

    num_blocks = sum(one.num_blocks for one in summarize(options.url))
    problems, num_deleted = 0, 0
    for problem in verify_blocks(options.url, delete=options.delete):
        problems += 1
        num_deleted += problem.is_deleted
        print(f"{problem.row.path}: {problem.reason}{' (deleted)' if problem.is_deleted else ''}")
    deleted = f", {num_deleted} deleted" if options.delete else ""
    print(f"{num_blocks} blocks read, {problems} damaged{deleted}")
    return 1 if problems > num_deleted else 0


def _gc(options: _GcOptions) -> int:
    from dualpath.store.gc import collect

    done = collect(
        options.url,
        capacity_bytes=options.capacity_bytes,
        namespace=None if options.namespace is None else bytes.fromhex(options.namespace),
        keep_latest=options.keep_latest,
        dry_run=options.dry_run,
    )
    if done.shares:
        print(f"{'namespace':32}  {'deleted':>17}  {'of':>17}  {'used':>7}  weights")
    for one in done.shares:
        print(
            f"{one.namespace.namespace_digest.hex()}  {one.num_deleted:>6} {_bytes(one.deleted_bytes):>10}"
            f"  {one.namespace.num_blocks:>6} {_bytes(one.namespace.num_bytes):>10}  {_weights(one.namespace)}"
        )
    verb = "would be deleted" if options.dry_run else "deleted"
    print(
        f"{done.num_deleted} of {done.num_blocks} blocks {verb}, {_bytes(done.deleted_bytes)} of "
        f"{_bytes(done.num_bytes)}; {done.num_swept} abandoned temporary files removed"
    )
    return 0


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
