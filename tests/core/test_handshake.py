"""Proofs of a shared secret hold for the connection and the end they were made for; a secret is found or asked for."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dualpath.core import handshake
from dualpath.core.errors import ConfigError

secrets = st.binary(min_size=1, max_size=40)


@given(secrets)
def test_two_ends_with_the_same_secret_know_each_other(secret: bytes) -> None:
    asked = handshake.challenge()
    response = handshake.respond(secret, asked)
    assert response is not None
    assert (len(asked), len(response)) == (handshake.CHALLENGE_BYTES, handshake.RESPONSE_BYTES)
    confirmation = handshake.confirm(secret, asked, response)
    assert confirmation is not None
    assert len(confirmation) == handshake.CONFIRMATION_BYTES
    assert handshake.is_confirmed(secret, asked, response, confirmation)


@given(secrets, secrets, st.data())
def test_anything_else_is_no_proof(secret: bytes, other: bytes, data: st.DataObject) -> None:
    asked = handshake.challenge()
    response = handshake.respond(secret, asked)
    assert response is not None
    confirmation = handshake.confirm(secret, asked, response)
    assert confirmation is not None
    assert handshake.confirm(secret, handshake.challenge(), response) is None
    assert not handshake.is_confirmed(secret, handshake.challenge(), response, confirmation)
    assert not handshake.is_confirmed(secret, asked, response, response[-handshake.CONFIRMATION_BYTES :])
    flipped = bytearray(response)
    flipped[data.draw(st.integers(0, len(response) - 1))] ^= data.draw(st.integers(1, 255))
    assert handshake.confirm(secret, asked, bytes(flipped)) is None
    if other.rstrip(b"\0") != secret.rstrip(b"\0"):  # HMAC pads a key with zeros
        assert handshake.confirm(other, asked, response) is None


def test_who_does_not_speak_it_gets_no_proof() -> None:
    assert handshake.respond(b"secret", b"HTTP/1.1 400 Bad Request") is None
    assert handshake.respond(b"secret", bytes(handshake.CHALLENGE_BYTES)) is None


def test_a_secret_comes_from_the_environment_or_a_file_of_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("0123456789abcdef\n")
    path.chmod(0o600)
    assert handshake.read_secret({"DUALPATH_SECRET": "x" * 16}) == b"x" * 16
    assert handshake.read_secret({"DUALPATH_SECRET_FILE": str(path)}) == b"0123456789abcdef"
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="others can read"):
        handshake.read_secret({"DUALPATH_SECRET_FILE": str(path)})


@pytest.mark.parametrize("environment", [{}, {"DUALPATH_SECRET": "short"}, {"DUALPATH_SECRET_FILE": "/nowhere"}])
def test_without_one_it_says_what_is_missing(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="DUALPATH_SECRET"):
        handshake.read_secret(environment)


def test_a_flood_of_strangers_is_a_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    refusals = handshake.Refusals(logging.getLogger("dualpath.test"), "a place")
    for _ in range(1000):
        refusals.add(("127.0.0.1", 1))
    assert refusals.count == 1000
    assert len(caplog.records) == 10
