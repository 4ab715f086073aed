"""Who we are to S3: the environment first, then the profile in ``~/.aws``, then what the machine itself is given.

The usual variables: ``AWS_ACCESS_KEY_ID`` with ``AWS_SECRET_ACCESS_KEY`` and, for temporary ones,
``AWS_SESSION_TOKEN``; ``AWS_PROFILE``, ``AWS_SHARED_CREDENTIALS_FILE``, ``AWS_CONFIG_FILE``. Only keys that stand in
the files are read: single sign-on, assumed roles and credential processes are refused by name. Instance and pod
identities are left to the two clients, which refresh them on their own.
"""

from __future__ import annotations

import configparser
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dualpath.core.errors import ConfigError

# What makes the clients find an identity by themselves.
_AMBIENT = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_DYNAMIC = ("sso_session", "sso_start_url", "credential_process", "role_arn")


@dataclass(frozen=True, slots=True)
class Credentials:
    access_key: str
    secret_key: str = field(repr=False)
    session_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class AwsProfile:
    """What ``~/.aws`` says under the chosen name; all empty where it says nothing."""

    name: str
    is_found: bool = False
    region: str = ""
    endpoint_url: str = ""
    credentials: Credentials | None = None
    dynamic: str = ""  # the setting that would need more than reading a file


def read_profile(environment: Mapping[str, str]) -> AwsProfile:
    """Merge the credentials file over the config file; keys are one file's. ConfigError: a file cannot be read."""
    name = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE") or "default"
    home = Path(environment.get("HOME") or "~").expanduser() / ".aws"
    config_file = Path(environment.get("AWS_CONFIG_FILE") or home / "config").expanduser()
    credentials_file = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials").expanduser()
    section = "default" if name == "default" else f"profile {name}"
    in_config, in_credentials = _section(config_file, section), _section(credentials_file, name)
    found = in_config | in_credentials
    keys = in_credentials if "aws_access_key_id" in in_credentials else in_config
    key, secret = keys.get("aws_access_key_id", ""), keys.get("aws_secret_access_key", "")
    return AwsProfile(
        name=name,
        is_found=bool(found),
        region=found.get("region", ""),
        endpoint_url=found.get("endpoint_url", ""),
        credentials=Credentials(key, secret, keys.get("aws_session_token", "")) if key and secret else None,
        dynamic=next((setting for setting in _DYNAMIC if setting in found), ""),
    )


def find_credentials(environment: Mapping[str, str], profile: AwsProfile, *, is_aws: bool) -> Credentials | None:
    """None: the clients find an instance's or a pod's identity. Raises ConfigError where nothing can come of it."""
    key, secret = environment.get("AWS_ACCESS_KEY_ID", ""), environment.get("AWS_SECRET_ACCESS_KEY", "")
    if bool(key) != bool(secret):
        missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise ConfigError(f"S3 credentials: {missing} is not set, but the other one is")
    asked = environment.get("AWS_PROFILE", "")
    if asked and not profile.is_found:
        raise ConfigError(f"S3 credentials: AWS_PROFILE={asked}: there is no such profile in ~/.aws")
    if key:
        return Credentials(key, secret, environment.get("AWS_SESSION_TOKEN", ""))
    if profile.credentials is not None:
        return profile.credentials
    if profile.dynamic:
        raise ConfigError(
            f"S3 credentials: profile {profile.name} uses {profile.dynamic}, which is not supported; export keys, e.g. "
            f"with: aws configure export-credentials --profile {profile.name} --format env"
        )
    if not is_aws and not any(environment.get(name) for name in _AMBIENT):
        raise ConfigError(
            "S3 credentials: none found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile "
            "in ~/.aws/credentials"
        )
    return None


def _section(path: Path, name: str) -> dict[str, str]:
    parser = configparser.RawConfigParser(default_section="", strict=False)
    try:
        text = path.read_text(encoding="utf-8")
        parser.read_string(text)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"S3 credentials: cannot read {path}: {error.strerror}") from error
    except (configparser.Error, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"S3 credentials: {path} is not a profile file: {reason}") from None
    return dict(parser.items(name)) if parser.has_section(name) else {}
