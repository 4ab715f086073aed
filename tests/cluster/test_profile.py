"""``dualpath model profile`` and what a cluster makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.e2e.cluster_kit import all_zero, ask, cluster, settings

from dualpath.cli.main import main
from dualpath.cluster.embedded import EmbeddedCluster
from dualpath.cluster.profile import FILE_NAME, Profile
from dualpath.config import DeadlineConfig, ServeConfig
from dualpath.core.errors import ConfigError
from dualpath.models.init import init_model
from dualpath.scheduler.config import SchedulerConfig

PROMPT = [32 + (i * 7 + i * i // 5) % 90 for i in range(300)]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = init_model("llama", tmp_path_factory.mktemp("profile") / "model", layers=2)
    assert main(["model", "profile", "--model", str(path), "--device", "cpu", "--threads", "1", "--budget-s", "2"]) == 0
    return path


@pytest.fixture(scope="module")
def profile(model_dir: Path) -> Profile:
    return Profile.read(model_dir / FILE_NAME)


async def started(config: ServeConfig) -> tuple[SchedulerConfig, list[str]]:
    """A cluster's scheduler settings, and the lines it printed while it started."""
    lines: list[str] = []
    embedded = EmbeddedCluster(config, progress=lines.append)
    await embedded.start()
    await embedded.close(0.0)
    return embedded.service.config, lines


def test_a_profile_says_what_was_measured_and_on_what(profile):
    assert profile.setup.threads == 1
    assert len(profile.setup.fingerprint) == 32
    assert len(profile.prefill) >= 4
    assert len(profile.decode) >= 4
    assert profile.beta_tokens > 100
    assert profile.checksum_bytes_per_s > 1e8
    assert profile.copy_bytes_per_s > 1e8
    longest = max(profile.prefill, key=lambda s: s.num_new)
    assert profile.prefill_cost.forward_s([(longest.num_cached, longest.num_new)]) > 0
    assert profile.decode_cost.step_s(4, 400) > 0


def test_a_profile_survives_its_file(profile, tmp_path):
    profile.write(tmp_path / "p.json")
    assert Profile.read(tmp_path / "p.json") == profile
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "setup": {}}'])
def test_what_is_no_profile_is_refused_in_one_line(text, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ConfigError, match="is not a profile") as raised:
        Profile.read(tmp_path / "p.json")
    assert "\n" not in str(raised.value)


async def test_a_cluster_uses_the_profile_that_lies_beside_the_model(model_dir, profile, tmp_path):
    config = settings(model_dir, f"file://{tmp_path}")
    scheduler, lines = await started(config)
    assert scheduler.beta_tokens == max(profile.beta_tokens, 2 * 2048)
    assert scheduler.alpha_tokens != SchedulerConfig().alpha_tokens, "measured on the store's file system"
    assert any(line.startswith("profile: beta ") for line in lines)
    assert not list(tmp_path.rglob("*tmp*")), "the scratch file is gone"


async def test_a_given_nic_rate_wins_over_a_measured_one(model_dir, tmp_path):
    async with cluster(settings(model_dir, f"file://{tmp_path}", storage_nic_mbps=80)) as embedded:
        scheduler = embedded.service.config
        assert scheduler.default_nic_bytes_per_s == 10e6
        assert scheduler.alpha_tokens == int(3.0 * 10e6 / embedded.geometry.bytes_per_token)


async def test_the_scheduler_gives_up_after_its_engines(tmp_path):
    """However long an emulated NIC takes for all that is staged, and whatever deadlines the engines are given."""
    bare = init_model("llama", tmp_path / "model", layers=2)
    slow = settings(bare, "memory://slow", storage_nic_mbps=0.1)
    scheduler, _ = await started(replace(slow, deadlines=DeadlineConfig(storage_read_s=400, slot_s=500)))
    assert scheduler.reserve_timeout_s > 500
    one_context_s = 2048 * 2 * 2 * 64 * 4 / 12_500
    assert scheduler.read_timeout_s > 400 + 4 * one_context_s
    assert SchedulerConfig().read_timeout_s < 400, "else this shows nothing"


async def test_another_machine_s_profile_is_not_used_and_a_line_says_why(model_dir, profile, tmp_path):
    other = tmp_path / "other.json"
    replace(profile, setup=replace(profile.setup, device="A Faster One")).write(other)
    config = settings(model_dir, "memory://other")
    config = replace(config, model=replace(config.model, profile=other))
    scheduler, lines = await started(config)
    assert scheduler.beta_tokens == SchedulerConfig().beta_tokens
    (line,) = [line for line in lines if "does not hold here" in line]
    assert "device A Faster One" in line
    assert "dualpath model profile --model" in line


async def test_without_a_profile_defaults_hold_and_a_line_says_how_to_get_one(tmp_path):
    bare = init_model("llama", tmp_path / "model", layers=2)
    scheduler, lines = await started(settings(bare, "memory://bare"))
    assert (scheduler.alpha_tokens, scheduler.beta_tokens) == (1_000_000, 100_000)
    (line,) = [line for line in lines if line.startswith("no profile")]
    assert "dualpath model profile --model" in line


async def test_a_profile_that_was_asked_for_has_to_be_there(model_dir, tmp_path):
    config = settings(model_dir, "memory://none")
    config = replace(config, model=replace(config.model, profile=tmp_path / "none.json"))
    with pytest.raises(ConfigError, match="no such profile"):
        await started(config)


async def test_a_tight_quota_cuts_prompts_and_changes_no_token(model_dir, profile, tmp_path):
    """300 tokens whose attention alone would take far more than the quota go in pieces of the smallest size."""
    slow = tmp_path / "slow.json"
    replace(profile, prefill_cost=replace(profile.prefill_cost, per_pair_s=1.0)).write(slow)
    answers, forwards = [], []
    for given in (None, slow):
        config = settings(model_dir, f"memory://quota-{given}", decode=1)
        async with cluster(replace(config, model=replace(config.model, profile=given))) as embedded:
            answers.append((await ask(embedded, PROMPT, 8)).token_ids)
            await all_zero(embedded)
            forwards.append(embedded.prefill_engines[0]._num_forwards)
    assert answers[0] == answers[1]
    assert forwards == [1, -(-len(PROMPT) // 64)]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--model", "/nowhere"], "no such model directory"),
        (["--model", "MODEL", "--threads", "0"], "must be positive"),
        (["--model", "MODEL", "--budget-s", "1", "--out", "/nowhere/p.json"], "cannot write /nowhere/p.json"),
    ],
)
def test_bad_arguments(arguments, reason, model_dir, capsys):
    assert main(["model", "profile", *(str(model_dir) if a == "MODEL" else a for a in arguments)]) == 2
    assert reason in capsys.readouterr().err


def test_the_file_is_plain_json(model_dir):
    assert json.loads((model_dir / FILE_NAME).read_text())["format"] == 1
