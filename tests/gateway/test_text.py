"""Tokens to text: nothing broken, nothing lost, nothing shown too early."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from dualpath.gateway.text.detokenize import ByteLevelDecode, IncrementalDetokenizer
from dualpath.gateway.text.stops import StopMatcher
from dualpath.gateway.text.tokenizer import Tokenizer
from dualpath.models.init_tokenizer import byte_symbols

TEXT = "naïve 😀👩‍👩‍👧 日本語 end"


def stream(detokenizer: IncrementalDetokenizer, ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


def byte_fallback() -> Tokenizer:
    """As Llama 2's: words with a leading space mark, and bytes for everything else."""
    vocab = {"<unk>": 0} | {f"<0x{b:02X}>": b + 1 for b in range(256)} | {"▁Hello": 257, "▁world": 258, "!": 259}
    inner = RustTokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner))


def test_characters_of_several_tokens_appear_whole(tokenizer: Tokenizer) -> None:
    pieces = stream(IncrementalDetokenizer(tokenizer.decoder(True)), list(TEXT.encode()))
    assert "".join(pieces) == TEXT
    assert all("\ufffd" not in piece for piece in pieces)


@given(st.text(), st.text())
def test_any_text_survives_any_prompt(prompt: str, text: str) -> None:
    decode = _bytes_decoder
    pieces = stream(IncrementalDetokenizer(decode, list(prompt.encode())), list(text.encode()))
    assert "".join(pieces) == text


def _bytes_decoder(ids: Sequence[int]) -> str:
    return bytes(ids).decode("utf-8", "replace")


@given(st.data())
def test_tokens_of_a_byte_level_tokenizer_that_are_not_looked_at_together(data: st.DataObject) -> None:
    """Whole characters, parts of some, garbage and special tokens in any order."""
    tokenizer = _byte_level()
    pieces = [[0xFF], [0xC3], [0x61], [300], [301], [258], list("é".encode()), list("😀".encode())]
    ids = [i for piece in data.draw(st.lists(st.sampled_from(pieces))) for i in piece]
    skips = data.draw(st.booleans())
    shown = "".join(stream(IncrementalDetokenizer(tokenizer.decoder(skips), [0xF0]), [0x61, *ids]))
    # What the prompt's last byte may have begun ends with the first token.
    assert shown.removeprefix("\ufffd") == tokenizer.decode([0x61, *ids], skip_special_tokens=skips)


@cache
def _byte_level() -> Tokenizer:
    """Bytes, two words, one of which ends in a part of a character, and a special token."""
    vocab = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    made = RustTokenizer(models.BPE(vocab={**vocab, "Ġword": 300, "xÃ": 301}, merges=[]))
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|im_start|>"])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=made))


def test_only_a_byte_level_decoder_has_tokens_that_are_the_same_everywhere(tokenizer: Tokenizer) -> None:
    assert isinstance(tokenizer.decoder(True), ByteLevelDecode)
    assert not isinstance(byte_fallback().decoder(True), ByteLevelDecode)


def test_garbage_neither_blocks_nor_spoils_what_follows(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer.decoder(True))
    shown = "".join(detokenizer.push(0xFF) for _ in range(100))
    assert len(shown) > 80
    rest = "".join(stream(detokenizer, list("ok 😀".encode())))
    assert shown + rest == "\ufffd" * 100 + "ok 😀"


def test_an_unfinished_character_is_flushed(tokenizer: Tokenizer) -> None:
    assert "".join(stream(IncrementalDetokenizer(tokenizer.decoder(True)), list("a😀".encode()[:-1]))) == "a\ufffd"


def test_byte_fallback_and_leading_spaces() -> None:
    tokenizer = byte_fallback()
    emoji = [b + 1 for b in "😀".encode()]
    ids = [257, 258, *emoji, *emoji, 259]
    assert "".join(stream(IncrementalDetokenizer(tokenizer.decoder(True)), ids)) == "Hello world😀😀!"
    # After a prompt the first word's space is text.
    assert "".join(stream(IncrementalDetokenizer(tokenizer.decoder(True), [257]), [258])) == " world"
    assert tokenizer.token_text(258) == " world"
    assert tokenizer.token_bytes(emoji[0]) == b"\xf0"


def test_cost_per_token_does_not_grow() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return "".join("" if i == 0 else chr(i) for i in ids)

    rng = random.Random(0)
    detokenizer = IncrementalDetokenizer(decode)
    ids = [*(rng.choice([0, 65, 66]) for _ in range(500)), *[0] * 500, *[65] * 50]
    assert "".join(stream(detokenizer, ids)) == decode(ids[:0]) + "".join(chr(i) for i in ids if i)
    assert longest < 50


def test_special_tokens_are_shown_on_demand(tokenizer: Tokenizer) -> None:
    ids = [65, 256, 66, 257]
    assert "".join(stream(IncrementalDetokenizer(tokenizer.decoder(True)), ids)) == "AB"
    assert "".join(stream(IncrementalDetokenizer(tokenizer.decoder(False)), ids)) == "A<|im_start|>B<|im_end|>"


def test_a_token_by_itself(tokenizer: Tokenizer) -> None:
    unnamed = 300  # models have rows for more ids than their tokenizers have tokens
    assert [tokenizer.token_text(token_id) for token_id in (65, 257, unnamed)] == ["A", "<|im_end|>", ""]
    assert [tokenizer.token_bytes(token_id) for token_id in (0xF0, 257, unnamed)] == [b"\xf0", b"<|im_end|>", b""]


def run_stops(stops: Sequence[str], pieces: Sequence[str], *, include_stop: bool = False) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include_stop=include_stop)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        if matcher.matched is not None:
            return shown, matcher.matched
    return shown + matcher.flush(), None


def test_stop_string_over_several_pieces() -> None:
    assert run_stops(["STOP"], ["ab S", "T", "OP cd"]) == ("ab ", "STOP")
    assert run_stops(["STOP"], ["ab S", "T", "OP cd"], include_stop=True) == ("ab STOP", "STOP")
    assert run_stops(["STOP"], ["STO"]) == ("STO", None)


@pytest.mark.parametrize("piece_length", [1, 2, 5])
def test_stop_strings_that_overlap_themselves_and_each_other(piece_length: int) -> None:
    def cut(text: str) -> list[str]:
        return [text[i : i + piece_length] for i in range(0, len(text), piece_length)]

    assert run_stops(["aab"], cut("xaaaab!")) == ("xaa", "aab")
    assert run_stops(["\n\nHuman:", "\n\n\n"], cut("hi\n\nHumax\n\n\nno")) == ("hi\n\nHumax", "\n\n\n")
    assert run_stops(["ab", "b"], cut("xab")) == ("x", "ab")


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_stops_match_a_plain_search(text: str, stops: list[str]) -> None:
    ends = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    shown, matched = run_stops(stops, list(text))
    if not ends:
        assert (shown, matched) == (text, None)
    else:
        end, _, stop = min(ends)
        assert (shown, matched) == (text[: end - len(stop)], stop)


def test_many_choices_share_what_is_known_of_their_stop_strings() -> None:
    matchers = [StopMatcher(["ab" * 2000, "stop"]) for _ in range(128)]
    assert len({id(automaton._fallback) for matcher in matchers for automaton in matcher._automata}) == 2
