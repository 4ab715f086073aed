"""One seam to any Hugging Face tokenizer: text to ids, ids to text, conversations to prompts.

The fast tokenizers' Rust core is called directly: its batch call releases the interpreter lock, so a long prompt
tokenised in a thread does not stall running streams, and its decode is cheap enough for one call per token.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import re
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from dualpath.core.errors import ConfigError, InvalidRequestError
from dualpath.gateway.text.detokenize import REPLACEMENT, ByteLevelDecode, Decode
from dualpath.gateway.text.template import TemplateNeeds, template_needs
from dualpath.grammar.vocabulary import grammars_over

T = TypeVar("T")

MAX_ERROR_CHARS = 300
PIECE_CHARS = 16384
MIN_BYTES_PER_TOKEN_TO_LOOK = 8  # ordinary text has 3 to 5, so prompts that fit are hardly ever tokenised twice
_RESERVED_KWARGS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"kwargs"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """Thread-safe: nothing here changes after construction but caches."""

    def __init__(self, inner: PreTrainedTokenizerBase, *, vocab_size: int | None = None, num_threads: int = 2) -> None:
        """``vocab_size`` is the model's, rows of padding included; by default the tokenizer's."""
        self._inner: Any = inner
        self._core: Any = getattr(inner, "backend_tokenizer", None)  # None: a tokenizer written in Python
        if self._core is not None:
            self._core.no_truncation()
            self._core.no_padding()
        self._decoders = {skips: self._decoder(skips) for skips in (False, True)}
        self.vocab_size = vocab_size if vocab_size is not None else len(inner)
        self.special_tokens = frozenset(inner.all_special_tokens) | _special_added(inner)
        self.chat_template = str(getattr(inner, "chat_template", None) or "")
        self.template_needs: TemplateNeeds = template_needs(self.chat_template, self._render)
        self.token_text: Callable[[int], str] = lru_cache(maxsize=65536)(self._token_text)
        self.token_bytes: Callable[[int], bytes] = lru_cache(maxsize=65536)(self._token_bytes)
        ends = [] if inner.eos_token_id is None else [inner.eos_token_id]
        self.grammars = grammars_over(lambda: self._core, self.vocab_size, ends)
        self._byte_of_symbol = _byte_level_alphabet() if self._is_byte_level() else {}
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")

    @classmethod
    def load(cls, model_dir: str | Path) -> Tokenizer:
        """The tokenizer of a local model directory; ConfigError if there is none."""
        path = Path(model_dir)
        if not path.is_dir():
            raise ConfigError(f"no such model directory: {path}")
        try:
            inner = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise ConfigError(f"cannot load the tokenizer in {path}: {_one_line(error)}") from error
        tokenizer = cls(inner, vocab_size=_model_vocab_size(path))
        tokenizer.grammars.warm()
        return tokenizer

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run tokenising work off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._core is None:
            return list(self._inner.encode(text, add_special_tokens=add_special_tokens))
        try:
            encoding = self._core.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]
        except (TypeError, UnicodeEncodeError) as error:  # lone surrogates, which JSON can spell
            raise InvalidRequestError(f"the text cannot be tokenised: {_one_line(error)}") from error
        ids: list[int] = encoding.ids  # a new list with each call
        return ids

    def has_more_than(self, text: str, max_tokens: int) -> bool:
        """Whether ``text`` has clearly more tokens, found out at the cost of twice ``max_tokens``, however long it is.

        It is tokenised in pieces until there are twice as many: cutting changes the tokens next to the cuts, never
        every second one. Text with few bytes for each of ``max_tokens`` is not looked at, as it costs little anyway.
        """
        num_bytes = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        if num_bytes <= MIN_BYTES_PER_TOKEN_TO_LOOK * max_tokens:
            return False
        num_tokens = 0
        for start in range(0, len(text), PIECE_CHARS):
            num_tokens += len(self.encode(text[start : start + PIECE_CHARS], add_special_tokens=False))
            if num_tokens > 2 * max_tokens:
                return True
        return False

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return self.decoder(skip_special_tokens)(token_ids)

    def decoder(self, skip_special_tokens: bool) -> Decode:
        """A function that decodes; spaces are never tidied up, as that could change text already streamed."""
        return self._decoders[skip_special_tokens]

    def _decoder(self, skip_special_tokens: bool) -> Decode:
        if self._core is not None:
            decode = self._core.decode
            decoder: Decode = lambda ids: str(decode(ids, skip_special_tokens=skip_special_tokens))  # noqa: E731
            state = b"{}" if self._core.decoder is None else self._core.decoder.__getstate__()
            return ByteLevelDecode(decoder) if json.loads(state).get("type") == "ByteLevel" else decoder
        inner = self._inner
        return lambda ids: str(
            inner.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        )

    def token_id(self, text: str) -> int | None:
        """The token that was added for ``text``, special or not; None where it takes several, or is a word."""
        return next((i for i, token in self._inner.added_tokens_decoder.items() if token.content == text), None)

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raise InvalidRequestError if an id is outside the model's vocabulary."""
        if not token_ids:
            return
        with contextlib.suppress(OverflowError):  # an id that is negative, or above 32 bits
            if np.frombuffer(array("I", token_ids), np.uintc).max() < self.vocab_size:
                return
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.vocab_size:
            bad = low if low < 0 else high
            raise InvalidRequestError(
                f"token id {bad} is outside the vocabulary of {self.vocab_size} tokens", param=param
            )

    def render_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        template_kwargs: dict[str, Any],
    ) -> str:
        """The prompt's text; InvalidRequestError if the model's template refuses the conversation or there is none."""
        for name in template_kwargs:
            if name in _RESERVED_KWARGS:
                raise InvalidRequestError(f"chat_template_kwargs cannot set {name}", param="chat_template_kwargs")
        try:
            return self._render(
                messages,
                tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **template_kwargs,
            )
        except Exception as error:  # the model's program, run on what a client sent: it can fail in any way
            raise InvalidRequestError(f"the chat template failed: {_one_line(error)}", param="messages") from error

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **options: Any) -> str:
        if not any(message.get("content", "") is None for message in messages):
            return str(self._inner.apply_chat_template(messages, tools=tools, tokenize=False, **options))
        # apply_chat_template leaves out what is null, and a template that asks for null content would not see any.
        render: Any = render_jinja_template  # its annotation is wrong
        rendered, _ = render(
            [messages],
            tools=tools,
            chat_template=self._inner.get_chat_template(None, tools),
            **{**self._inner.special_tokens_map, **options},
        )
        return str(rendered[0])

    def info(self) -> dict[str, Any]:
        """What tokenizer_config.json says, with the chat template, as vLLM has it at /tokenizer_info."""
        kwargs = {
            name: _plain(value)
            for name, value in self._inner.init_kwargs.items()
            if not name.endswith(("_file", "_path"))  # the server's business
        }
        template = getattr(self._inner, "chat_template", None)
        return {**kwargs, "tokenizer_class": type(self._inner).__name__, "chat_template": template}

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _token_text(self, token_id: int) -> str:
        """One token's text by itself, special tokens spelled out, a leading space kept."""
        text = self.decode([token_id], skip_special_tokens=False)
        piece = self._inner.convert_ids_to_tokens(token_id)
        if isinstance(piece, str) and piece.startswith("\u2581") and not text.startswith(" "):
            return " " + text
        return text

    def _token_bytes(self, token_id: int) -> bytes:
        """One token's bytes, exact even where they are only part of a character."""
        text = self.token_text(token_id)
        piece = self._inner.convert_ids_to_tokens(token_id)
        if REPLACEMENT not in text or not isinstance(piece, str):
            return text.encode("utf-8", "replace")
        if self._byte_of_symbol and all(char in self._byte_of_symbol for char in piece):
            return bytes(self._byte_of_symbol[char] for char in piece)
        match = _BYTE_TOKEN.fullmatch(piece)
        return bytes([int(match.group(1), 16)]) if match else text.encode("utf-8", "replace")

    def _is_byte_level(self) -> bool:
        if self._core is None or self._core.decoder is None:
            return False
        return b"ByteLevel" in self._core.decoder.__getstate__()


def _special_added(inner: PreTrainedTokenizerBase) -> frozenset[str]:
    """Tokens that decoding skips, though no role of the tokenizer's is filled by them."""
    return frozenset(str(token) for token in inner.added_tokens_decoder.values() if token.special)


def _byte_level_alphabet() -> dict[str, int]:
    """Printable stand-ins of bytes in byte-level tokenizers: Latin-1's own, then U+0100 on for the others."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _model_vocab_size(path: Path) -> int | None:
    """``vocab_size`` of config.json, of the text part if the model has several."""
    try:
        config = json.loads((path / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return None
    for part in (config, config.get("text_config") or {}):
        if isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def _plain(value: Any) -> Any:
    """As JSON may have it: tokens with flags as their text."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "..."
