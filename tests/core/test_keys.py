"""Block keys: chained, stable across processes, separated by everything that makes KV unusable."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core.geometry import KvGeometry
from dualpath.core.keys import KnownPrefixes, Namespace, chain_keys, root_key

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


PIECES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 100)), min_size=1, max_size=6)


@given(st.lists(PIECES, max_size=6), st.integers(1, 3))
def test_known_prefixes_give_the_same_keys(prompts, max_runs):
    """Prompts that begin alike, go apart and come back to the same tokens; most runs are forgotten soon."""
    known, salts = KnownPrefixes(2, max_runs), [root_key(NAMESPACE), root_key(NAMESPACE, "tenant")]
    for number, pieces in enumerate(prompts):
        prompt = [token for token, count in pieces for _ in range(count)]
        root = salts[number % 2]
        assert known.keys(root, prompt) == chain_keys(root, prompt, 2)
        assert known.keys(root, prompt) == chain_keys(root, prompt, 2)


def test_a_known_prefix_is_not_hashed_again():
    known, prompt = KnownPrefixes(4), list(range(4 * 100))
    known.keys(root_key(NAMESPACE), prompt)
    assert known.num_hashed_blocks == 100
    known.keys(root_key(NAMESPACE), [*prompt, 1, 2, 3, 4])
    assert known.num_hashed_blocks == 105, "what is behind the last whole run"
    known.keys(root_key(NAMESPACE, "tenant"), prompt)
    assert known.num_hashed_blocks == 205
