"""One seam to any Hugging Face tokenizer: text to ids, ids to text, conversations to prompts.

The fast tokenizers' Rust core is called directly: its batch call releases the interpreter lock, so a long prompt
tokenised in a thread does not stall running streams, and its decode is cheap enough for one call per token.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from dualpath.core.errors import ConfigError, InvalidRequestError
from dualpath.gateway.detokenize import REPLACEMENT, Decode

T = TypeVar("T")

MAX_ERROR_CHARS = 300
PIECE_CHARS = 16384
MIN_BYTES_PER_TOKEN_TO_LOOK = 8  # ordinary text has 3 to 5, so prompts that fit are hardly ever tokenised twice
_RESERVED_KWARGS = frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) - {"kwargs"}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_ARGUMENTS_AS_STRING = re.compile(r"arguments\s+is\s+string")


class Tokenizer:
    """Thread-safe: nothing here changes after construction but caches."""

    def __init__(self, inner: PreTrainedTokenizerBase, *, vocab_size: int | None = None, num_threads: int = 2) -> None:
        """``vocab_size`` is the model's, rows of padding included; by default the tokenizer's."""
        self._inner: Any = inner
        self._core: Any = getattr(inner, "backend_tokenizer", None)  # None: a tokenizer written in Python
        if self._core is not None:
            self._core.no_truncation()
            self._core.no_padding()
        self.vocab_size = vocab_size if vocab_size is not None else len(inner)
        self.special_tokens = frozenset(inner.all_special_tokens)
        template = getattr(inner, "chat_template", None) or ""
        # Such templates print a tool call's arguments as they are, so the history repeats the very tokens that the
        # model made, and their cached KV is found. Others expect the parsed object.
        self.template_keeps_arguments = bool(_ARGUMENTS_AS_STRING.search(str(template)))
        self.token_text: Callable[[int], str] = lru_cache(maxsize=65536)(self._token_text)
        self.token_bytes: Callable[[int], bytes] = lru_cache(maxsize=65536)(self._token_bytes)
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
        return cls(inner, vocab_size=_model_vocab_size(path))

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
        return list(encoding.ids)

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
        if self._core is not None:
            decode = self._core.decode
            return lambda ids: str(decode(ids, skip_special_tokens=skip_special_tokens))
        inner = self._inner
        return lambda ids: str(
            inner.decode(list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)
        )

    def check_ids(self, token_ids: Sequence[int], param: str) -> None:
        """Raise InvalidRequestError if an id is outside the model's vocabulary."""
        if not token_ids:
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
            text = self._inner.apply_chat_template(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tokenize=False,
                **template_kwargs,
            )
        except Exception as error:  # the model's program, run on what a client sent: it can fail in any way
            raise InvalidRequestError(f"the chat template failed: {_one_line(error)}", param="messages") from error
        return str(text)

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


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= MAX_ERROR_CHARS else text[:MAX_ERROR_CHARS] + "..."
