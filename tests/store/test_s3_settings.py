"""Where an S3 URL's endpoint, region and credentials come from, in which order, and what is refused with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from dualpath.core.errors import ConfigError
from dualpath.store.open import below, parse_url
from dualpath.store.s3.backend import backend_params
from dualpath.store.s3.settings import S3Settings, resolve

KEYS = {"AWS_ACCESS_KEY_ID": "env-key", "AWS_SECRET_ACCESS_KEY": "env-secret"}


def settings(url: str, environment: Mapping[str, str], home: Path) -> S3Settings:
    _, location, options = parse_url(url)
    return resolve(url, location, options, {"HOME": str(home)} | dict(environment))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with two profiles, and one that needs more than files."""
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        "[default]\naws_access_key_id = file-key\naws_secret_access_key = file-secret\n"
        "[work]\naws_access_key_id = work-key\naws_secret_access_key = work%secret\naws_session_token = work-token\n"
    )
    (folder / "config").write_text(
        "[default]\nregion = eu-west-3\n[profile work]\nregion = eu-north-1\nendpoint_url = https://store.example:9000/\n"
        "[profile sso]\nsso_session = company\n"
    )
    return tmp_path


def test_the_url_wins_over_the_environment_and_that_over_the_profile(home: Path) -> None:
    environment = KEYS | {"AWS_ENDPOINT_URL": "http://env:1", "AWS_REGION": "eu-central-1"}
    by_url = settings("s3://bucket/a/b/?endpoint=http://url:2&region=us-west-2", environment, home)
    assert (by_url.bucket, by_url.prefix, by_url.endpoint, by_url.region) == (
        "bucket",
        "a/b",
        "http://url:2",
        "us-west-2",
    )
    by_environment = settings("s3://bucket", environment, home)
    assert (by_environment.prefix, by_environment.endpoint, by_environment.region) == (
        "",
        "http://env:1",
        "eu-central-1",
    )
    by_profile = settings("s3://bucket", {"AWS_PROFILE": "work"}, home)
    assert (by_profile.endpoint, by_profile.region) == ("https://store.example:9000", "eu-north-1")
    assert settings("s3://bucket", {}, home).region == "eu-west-3"


def test_the_service_s_own_endpoint_variable_comes_first(home: Path) -> None:
    environment = KEYS | {"AWS_ENDPOINT_URL": "http://all:1", "AWS_ENDPOINT_URL_S3": "http://s3:2"}
    assert settings("s3://bucket", environment, home).endpoint == "http://s3:2"


def test_credentials_by_environment_then_by_profile(home: Path) -> None:
    def keys(environment: Mapping[str, str]) -> tuple[str, str, str]:
        found = settings("s3://bucket?endpoint=http://h:1", environment, home).credentials
        assert found is not None
        return found.access_key, found.secret_key, found.session_token

    assert keys(KEYS | {"AWS_SESSION_TOKEN": "t"}) == ("env-key", "env-secret", "t")
    assert keys({}) == ("file-key", "file-secret", "")
    assert keys({"AWS_PROFILE": "work"}) == ("work-key", "work%secret", "work-token")
    other = home / "elsewhere"
    other.write_text("[default]\naws_access_key_id=x\naws_secret_access_key=y\n")
    assert keys({"AWS_SHARED_CREDENTIALS_FILE": str(other)}) == ("x", "y", "")


def test_a_session_token_of_other_keys_is_not_taken(home: Path) -> None:
    config = home / ".aws" / "config"
    config.write_text("[default]\naws_access_key_id = old\naws_secret_access_key = old\naws_session_token = old\n")
    found = settings("s3://bucket", {}, home).credentials
    assert found is not None
    assert (found.access_key, found.session_token) == ("file-key", "")


@pytest.mark.parametrize(
    ("url", "environment"),
    [
        ("s3://key:hidden@bucket", {}),
        ("s3://bucket?secret_key=hidden", {}),
        ("s3://bucket?endpoint=http://key:hidden@h:1", {}),
        ("s3://bucket?connections=0&endpoint=http://key:hidden@h:1", {}),
        ("s3://bucket", {"AWS_ENDPOINT_URL": "http://key:hidden@h:1"}),
    ],
)
def test_misplaced_secrets_are_refused_without_showing_them(url: str, environment: dict[str, str], home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings(url, KEYS | environment, home)
    assert "hidden" not in str(caught.value)


def test_secrets_are_not_shown(home: Path) -> None:
    shown = repr(settings("s3://bucket", KEYS | {"AWS_SESSION_TOKEN": "env-token"}, home))
    assert "env-secret" not in shown
    assert "env-token" not in shown


def test_without_an_endpoint_the_machine_s_identity_will_do(tmp_path: Path) -> None:
    assert settings("s3://bucket", {}, tmp_path).credentials is None
    pod = {"AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token"}
    assert settings("s3://bucket?endpoint=http://h:1", pod, tmp_path).credentials is None


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"AWS_ACCESS_KEY_ID": "only"}, "AWS_SECRET_ACCESS_KEY is not set"),
        ({"AWS_PROFILE": "nobody"}, "there is no such profile"),
        ({"AWS_PROFILE": "sso"}, "sso_session, which is not supported"),
        ({"AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_CONFIG_FILE": "/dev/null"}, "none found"),
        ({"AWS_ENDPOINT_URL": "localhost"} | KEYS, "endpoint must be like"),
        ({"AWS_CONFIG_FILE": "/etc/hostname"} | KEYS, "is not a profile file"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(environment: dict[str, str], reason: str, home: Path) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        settings(
            "s3://bucket?" + ("" if "AWS_ENDPOINT_URL" in environment else "endpoint=http://h:1"), environment, home
        )
    assert "\n" not in str(caught.value)


def test_buckets_are_in_the_host_s_name_on_aws_and_in_the_path_elsewhere(home: Path) -> None:
    assert settings("s3://bucket", KEYS, home).is_virtual_hosted
    assert not settings("s3://dotted.bucket", KEYS, home).is_virtual_hosted
    assert not settings("s3://bucket?endpoint=http://h:1", KEYS, home).is_virtual_hosted
    assert settings("s3://bucket?endpoint=http://h:1&addressing=virtual", KEYS, home).is_virtual_hosted


def test_what_nixl_is_told(home: Path) -> None:
    found = settings("s3://bucket/p?endpoint=https://h:1&connections=7", KEYS | {"AWS_SESSION_TOKEN": "t"}, home)
    params = backend_params(found)
    assert (params["endpoint_override"], params["scheme"], params["num_threads"]) == ("https://h:1", "https", "7")
    assert (params["access_key"], params["secret_key"], params["session_token"]) == ("env-key", "env-secret", "t")
    assert "access_key" not in backend_params(settings("s3://bucket", {"HOME": "/nowhere"}, home / "nowhere"))


def test_a_place_inside_a_store_keeps_its_options() -> None:
    assert below("s3://bucket/a/?endpoint=http://h:1", "b") == "s3://bucket/a/b?endpoint=http://h:1"
    assert below("s3://bucket", "b") == "s3://bucket/b"
