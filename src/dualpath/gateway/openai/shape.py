"""A body's fields that shape logits, checked and resolved to what an engine is told."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.gateway.errors import invalid
from dualpath.gateway.openai.bodies import Generation
from dualpath.gateway.text.tokenizer import Tokenizer

MAX_PENALTY = 2
MAX_BIAS = 100
MAX_BIASED = MAX_ALLOWED = 4096
MAX_BAD_WORDS, MAX_BAD_WORD_CHARS = 256, 4096


@dataclass(frozen=True, slots=True)
class Shape:
    logit_bias: tuple[tuple[int, float], ...]
    allowed_token_ids: tuple[int, ...]
    bad_words: tuple[tuple[int, ...], ...]
    grammar: str


def shape_of(body: Generation, tokenizer: Tokenizer, grammar: str) -> Shape:
    """Raises InvalidRequestError, which names the field."""
    return Shape(_bias(body, tokenizer), _allowed(body, tokenizer), _bad_words(body, tokenizer), grammar)


def _bias(body: Generation, tokenizer: Tokenizer) -> tuple[tuple[int, float], ...]:
    given = body.logit_bias or {}
    if len(given) > MAX_BIASED:
        raise invalid(f"logit_bias must have at most {MAX_BIASED} tokens", "logit_bias")
    try:
        biases = tuple((int(token), value) for token, value in given.items())
    except ValueError:
        raise invalid("logit_bias must have token ids as keys", "logit_bias") from None
    tokenizer.check_ids([token_id for token_id, _ in biases], "logit_bias")
    if any(not -MAX_BIAS <= value <= MAX_BIAS for _, value in biases):
        raise invalid(f"logit_bias must be between -{MAX_BIAS} and {MAX_BIAS}", "logit_bias")
    return biases


def _allowed(body: Generation, tokenizer: Tokenizer) -> tuple[int, ...]:
    given = body.allowed_token_ids
    if given is None:
        return ()
    if not 1 <= len(given) <= MAX_ALLOWED:
        raise invalid(f"allowed_token_ids must have 1 to {MAX_ALLOWED} tokens", "allowed_token_ids")
    tokenizer.check_ids(given, "allowed_token_ids")
    return tuple(given)


def _bad_words(body: Generation, tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """As tokens, with a space before and without, where that makes another first token: vLLM's rule."""
    given = body.bad_words or []
    if len(given) > MAX_BAD_WORDS:
        raise invalid(f"at most {MAX_BAD_WORDS} bad_words are allowed", "bad_words")
    out: dict[tuple[int, ...], None] = {}
    for word in given:
        if not 1 <= len(word) <= MAX_BAD_WORD_CHARS:
            raise invalid(f"a bad word must have 1 to {MAX_BAD_WORD_CHARS} characters", "bad_words")
        plain = tuple(tokenizer.encode(word.lstrip(), add_special_tokens=False))
        spaced = tuple(tokenizer.encode(f" {word.lstrip()}", add_special_tokens=False))
        out[plain or spaced] = None
        if plain and spaced[0] != plain[0] and len(spaced) == len(plain):
            out[spaced] = None
    return tuple(out)
