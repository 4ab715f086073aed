"""Block keys: chained, stable across processes, separated by everything that makes KV unusable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import Namespace, chain_keys, root_key

NAMESPACE = Namespace("f00d", "float32", KvGeometry(2, 4, 16), "cpu")
tokens = st.lists(st.integers(0, 2**31 - 1), max_size=40)


def test_the_digest_never_changes_between_versions():
    # A golden value: stored blocks of an earlier version must stay readable, or the format version must move.
    root = root_key(NAMESPACE)
    assert root.hex() == "029115177df8982eac7cacd0063378c1"
    assert chain_keys(root, [1, 2, 3, 4], 4)[0].hex() == "5f978b537aa2e7d5e2409f193732a54f"


def test_every_part_of_the_namespace_and_the_salt_separates():
    others = [
        replace(NAMESPACE, model_fingerprint="beef"),
        replace(NAMESPACE, kv_dtype="bfloat16"),
        replace(NAMESPACE, geometry=KvGeometry(2, 8, 8)),
        replace(NAMESPACE, numerics="cuda"),
        replace(NAMESPACE, layout="planes"),
    ]
    roots = {root_key(n) for n in (NAMESPACE, *others)} | {root_key(NAMESPACE, "tenant")}
    assert len(roots) == len(others) + 2


@given(tokens, tokens)
def test_equal_prefixes_and_only_they_have_equal_keys(a, b):
    keys_a, keys_b = (chain_keys(root_key(NAMESPACE), t, 4) for t in (a, b))
    for i in range(min(len(keys_a), len(keys_b))):
        assert (keys_a[i] == keys_b[i]) == (a[: 4 * i + 4] == b[: 4 * i + 4])


@given(tokens, st.integers(0, 10))
def test_chaining_in_two_steps_is_chaining_in_one(a, cut):
    root = root_key(NAMESPACE)
    whole = chain_keys(root, a, 4)
    cut = min(cut, len(whole))
    first = chain_keys(root, a[: 4 * cut], 4)
    assert first + chain_keys(first[-1] if first else root, np.array(a[4 * cut :]), 4) == whole
