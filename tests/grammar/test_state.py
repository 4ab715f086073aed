"""Grammar states: masks that follow the tokens, whatever way the state was made, and errors that say why."""

from __future__ import annotations

import random

import numpy as np
import pytest

from dualpath.core.errors import InvalidRequestError
from dualpath.grammar.state import Grammars
from dualpath.grammar.vocabulary import grammars_of, grammars_over

EOS = 257  # of init_model's tokenizer, whose other ids are byte values
DIGITS = "start: /[0-9]{2,4}/"


@pytest.fixture(scope="module")
def grammars(tiny_model_dir) -> Grammars:
    return grammars_of(tiny_model_dir("llama"), 264, (EOS,))


def allowed(mask: np.ndarray) -> set[int]:
    return set(np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist())


def test_a_mask_has_the_tokens_that_may_come_next(grammars):
    state = grammars.state(DIGITS)
    digits = set(b"0123456789")
    assert allowed(state.mask) == digits
    for byte, after in zip(b"1234", [digits, digits | {EOS}, digits | {EOS}, {EOS}], strict=True):
        state.push(byte)
        grammars.advance([state])
        assert allowed(state.mask) == after


def test_a_state_is_a_function_of_the_tokens(grammars):
    """Made at once, token by token, or behind any part of the output: the same masks."""
    grammar, dice = 'start: %json {"type": "object"}', random.Random(1)
    state, output = grammars.state(grammar), []
    for _ in range(60):
        anew = grammars.state(grammar, output)
        assert allowed(anew.mask) == allowed(state.mask)
        token = dice.choice(sorted(allowed(state.mask)))
        output.append(token)
        state.push(token)
        grammars.advance([state])
        if token == EOS:
            break
    assert len(output) > 5


def test_states_do_not_share_anything_and_are_advanced_together(grammars):
    one, other = grammars.state('start: "ab" | "cd"'), grammars.state('start: "ab" | "cd"')
    one.push(ord("a"))
    other.push(ord("c"))
    grammars.advance([one, other])
    assert (allowed(one.mask), allowed(other.mask)) == ({ord("b")}, {ord("d")})


def test_what_is_no_grammar_is_said_in_one_line(grammars):
    for wrong in ("start: /[/", "start: nothing", "", "{", 'start: %json {"type": "nothing"}'):
        with pytest.raises(InvalidRequestError) as raised:
            grammars.state(wrong)
        assert "\n" not in str(raised.value)


def test_an_output_that_does_not_fit_is_an_error(grammars):
    with pytest.raises(InvalidRequestError, match="so far"):
        grammars.state(DIGITS, b"x")
    state = grammars.state(DIGITS)
    state.push(ord("x"))
    grammars.advance([state])
    assert state.error is not None


def test_a_directory_without_a_tokenizer_is_an_error_of_the_request(tmp_path):
    with pytest.raises(InvalidRequestError, match="tokenizer"):
        grammars_of(tmp_path, 264, (EOS,)).state(DIGITS)


@pytest.mark.parametrize("decoder", [None, "word pieces", "a panic"])
def test_a_tokenizer_of_another_kind_is_an_error_of_the_request(decoder):
    """Not of the start, which loads it."""
    from tokenizers import Tokenizer, decoders, models

    inner = Tokenizer(models.WordPiece({"a": 0, "<0xZZ>x": 1, "[UNK]": 2}, unk_token="[UNK]"))
    if decoder == "word pieces":
        inner.decoder = decoders.WordPiece()
    elif decoder == "a panic":
        inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    grammars = grammars_over(lambda: inner, 3, (0,))
    grammars.warm()
    with pytest.raises(InvalidRequestError, match="tokenizer"):
        grammars.state(DIGITS)
