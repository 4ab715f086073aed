"""Defaults, then the file, then flags; and every mistake is one line that names its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.config import ServeConfig, load_config
from dualpath.config.fields import Entry, entries, tables
from dualpath.config.values import from_text
from dualpath.core.errors import ConfigError

NEEDED = {("model", "dir"): "/m", ("store", "url"): "memory://"}
NEEDED_TOML = '[model]\ndir = "/m"\n[store]\nurl = "memory://"\n'

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "serve.toml"
        path.write_text(text)
        return path

    return to_file


def _entry(table: str, name: str) -> Entry:
    return next(entry for entry in entries(dict(tables(ServeConfig))[table]) if entry.name == name)


def test_flags_win_over_the_file_and_the_file_over_defaults(write: Write) -> None:
    file = write(NEEDED_TOML + "[cluster]\nprefill = 2\ndecode = 3\n[gateway]\ndrain_s = 5\n")
    config = load_config(ServeConfig, file, {("cluster", "decode"): "7", ("gateway", "api_keys"): ["a", "b"]})
    assert (config.cluster.prefill, config.cluster.decode, config.cluster.engines_per_node) == (2, 7, 1)
    assert config.gateway.drain_s == 5.0
    assert isinstance(config.gateway.drain_s, float)
    assert config.gateway.api_keys == ("a", "b")


def test_every_kind_of_value_from_a_file(write: Write) -> None:
    file = write(
        NEEDED_TOML.replace("[store]", "[store]\ncapacity_bytes = '1.5GiB'")
        + "[memory]\ndecode_staging_bytes = 4096\n[gateway]\napi_keys = ['k1', 'k2']\n"
        + "[observe]\ntrace_out = '~/t.json'\n[cluster]\nstorage_nic_mbps = 800.5\n"
    )
    config = load_config(ServeConfig, file)
    assert config.model.dir == Path("/m")
    assert config.store.capacity_bytes == 3 * 1024**3 // 2
    assert config.memory.decode_staging_bytes == 4096
    assert config.gateway.api_keys == ("k1", "k2")
    assert config.observe.trace_out == Path("~/t.json").expanduser()
    assert config.cluster.storage_nic_mbps == 800.5


def test_the_home_of_somebody_unknown_is_a_plain_name() -> None:
    config = load_config(ServeConfig, None, {**NEEDED, ("model", "dir"): "~nobody.at.all/model"})
    assert config.model.dir == Path("~nobody.at.all/model")


BAD_FILES = [
    ("[cluster]\nprefil = 1", "[cluster] prefil: unknown key (did you mean prefill?)"),
    ("[clutser]\nprefill = 1", "unknown table [clutser] (did you mean cluster?)"),
    ("port = 1", "unknown key outside a table [port]"),
    ("cluster = 3", "[cluster] must be a table, not 3"),
    ("[cluster]\nprefill = '2'", "[cluster] prefill: must be a whole number, not '2'"),
    ("[cluster]\nprefill = true", "[cluster] prefill: must be a whole number, not True"),
    ("[cluster]\nprefill = 1.0", "[cluster] prefill: must be a whole number, not 1.0"),
    ("[cluster]\nprefill = -1", "[cluster] prefill: must be at least 1, not -1"),
    (
        "[cluster]\npath = 'fast'",
        "[cluster] path: must be one of prefill, decode, shorter, split, round_robin, not 'fast'",
    ),
    ("[cluster]\nstorage_nic_mbps = nan", "[cluster] storage_nic_mbps: must be a finite number, not nan"),
    ("[cluster]\nstorage_nic_mbps = inf", "[cluster] storage_nic_mbps: must be a finite number, not inf"),
    ("[cluster]\nstorage_nic_mbps = 0", "[cluster] storage_nic_mbps: must be more than 0, not 0.0"),
    ("[memory]\nprefill_staging_bytes = '1 GX'", "[memory] prefill_staging_bytes: must be a number of bytes"),
    ("[memory]\nprefill_staging_bytes = 0", "[memory] prefill_staging_bytes: must be at least 1, not 0"),
    ("[gateway]\nport = 70000", "[gateway] port: must be at most 65535, not 70000"),
    ("[gateway]\nhost = ''", "[gateway] host: must not be empty"),
    ("[gateway]\napi_keys = 'k'", "[gateway] api_keys: must be a list of strings, not 'k'"),
    ("[gateway]\napi_keys = ['k', 1]", "[gateway] api_keys: must be a string, not 1"),
    ("[model]\ndir = 5", "[model] dir: must be a path, not 5"),
    ("[model]\ndir = ''", "[model] dir: must not be empty"),
    ("[cluster", "not valid TOML: "),
    ("[cluster]\nprefill = 1\nprefill = 2", "not valid TOML: "),
]


@pytest.mark.parametrize(("text", "reason"), BAD_FILES)
def test_a_mistake_in_the_file_is_one_line(write: Write, text: str, reason: str) -> None:
    file = write(text)
    with pytest.raises(ConfigError) as raised:
        load_config(ServeConfig, file, NEEDED)
    assert str(raised.value).startswith(f"{file}: {reason}")
    assert "\n" not in str(raised.value)


BAD_FLAGS: list[tuple[str, str, Any, str]] = [
    ("gateway", "port", "http", "--port: must be a whole number, not 'http'"),
    ("gateway", "port", "-1", "--port: must be at least 0, not -1"),
    ("gateway", "drain_s", "soon", "--drain-s: must be a number, not 'soon'"),
    ("gateway", "drain_s", "-inf", "--drain-s: must be a finite number, not -inf"),
    ("gateway", "api_keys", ["ok", " "], "--api-key: must not be empty"),
    ("cluster", "prefill", "1.5", "--prefill: must be a whole number, not '1.5'"),
    ("cluster", "storage_nic_mbps", "nan", "--storage-nic-mbps: must be a finite number, not nan"),
    ("memory", "decode_staging_bytes", "-5", "--decode-staging-bytes: must be a number of bytes"),
    ("memory", "decode_staging_bytes", "9" * 400 + ".5GiB", "--decode-staging-bytes: must be a number of bytes"),
    ("memory", "decode_staging_bytes", "9" * 5000, "--decode-staging-bytes: must be a number of bytes"),
    ("model", "dir", "", "--model: must not be empty"),
    ("model", "device", "gpu", "--device: must be auto, cpu, cuda or cuda:N, not 'gpu'"),
]


@pytest.mark.parametrize(("table", "name", "text", "reason"), BAD_FLAGS)
def test_a_mistake_in_a_flag_names_the_flag(table: str, name: str, text: Any, reason: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(ServeConfig, None, {**NEEDED, (table, name): text})
    assert str(raised.value).startswith(reason)


@pytest.mark.parametrize(("table", "name", "flag"), [("model", "dir", "--model"), ("store", "url", "--store")])
def test_what_is_required_and_missing_is_named(table: str, name: str, flag: str) -> None:
    flags = {key: value for key, value in NEEDED.items() if key != (table, name)}
    with pytest.raises(ConfigError) as raised:
        load_config(ServeConfig, None, flags)
    assert str(raised.value) == f"{flag} is required (or {name} in [{table}] of a --config file)"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(ServeConfig, tmp_path / "none.toml", NEEDED)
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(ServeConfig, tmp_path, NEEDED)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(ServeConfig, tmp_path / "binary.toml", NEEDED)


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("7", 7),
        ("7b", 7),
        ("4KiB", 4096),
        ("4kb", 4000),
        ("1.5 MiB", 1572864),
        ("8GB", 8 * 10**9),
        ("2TiB", 2 * 1024**4),
    ],
)
def test_sizes(text: str, num_bytes: int) -> None:
    assert from_text(_entry("store", "capacity_bytes"), text) == num_bytes


@given(st.text(max_size=20), st.sampled_from([e for _, t in tables(ServeConfig) for e in entries(t)]))
def test_no_text_whatever_gets_past_as_something_else(text: str, entry: Entry) -> None:
    """Either a ConfigError, or a configuration that holds a value of the setting's type."""
    flags = {**NEEDED, (entry.table, entry.name): [text] if entry.many else text}
    try:
        config = load_config(ServeConfig, None, flags)
    except ConfigError:
        return
    value = getattr(getattr(config, entry.table), entry.name)
    assert isinstance(value[0] if entry.many else value, entry.kind)
