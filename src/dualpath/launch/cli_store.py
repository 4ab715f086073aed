"""``dualpath store``: look at a block store from outside a running server."""

from __future__ import annotations

import argparse
from typing import Any


def add(verbs: Any) -> None:
    store = verbs.add_parser("store", help="list or verify stored KV blocks")
    actions = store.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)
    ls = actions.add_parser("ls", help="list namespaces and blocks")
    ls.add_argument("url", metavar="URL", help="e.g. file:///data/kv")
    ls.set_defaults(run=_ls)
    verify = actions.add_parser("verify", help="read every block and check its header and checksum")
    verify.add_argument("url", metavar="URL", help="e.g. file:///data/kv")
    verify.add_argument("--delete", action="store_true", help="delete the blocks that are damaged")
    verify.set_defaults(run=_verify)


def _ls(arguments: argparse.Namespace) -> int:
    raise NotImplementedError


def _verify(arguments: argparse.Namespace) -> int:
    raise NotImplementedError
