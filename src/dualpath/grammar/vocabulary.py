"""A model's tokens, as grammars know them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from dualpath.core.errors import InvalidRequestError
from dualpath.grammar.state import Grammars, one_line

if TYPE_CHECKING:
    from llguidance import LLTokenizer


def grammars_of(model_dir: Path, vocab_size: int, eos_token_ids: Sequence[int]) -> Grammars:
    """Of a local model directory. ``vocab_size`` is the model's, rows of padding included. Loads nothing yet."""

    def core() -> Any:
        return AutoTokenizer.from_pretrained(
            model_dir, local_files_only=True, trust_remote_code=False
        ).backend_tokenizer

    return grammars_over(core, vocab_size, eos_token_ids)


def grammars_over(core: Callable[[], Any], vocab_size: int, eos_token_ids: Sequence[int]) -> Grammars:
    """``core``: gives a ``tokenizers.Tokenizer``, added tokens with it; it may raise anything."""

    def load() -> LLTokenizer:
        try:
            from llguidance import LLTokenizer  # where it is not installed: no grammars, and this is why

            ends = list(eos_token_ids)
            if not ends:
                raise ValueError("it has no end of sequence")
            inner = core()
            # Some have tokens that their model has no logits for.
            num_tokens = max(vocab_size, inner.get_vocab_size(with_added_tokens=True))
            return LLTokenizer(inner.to_str(), n_vocab=num_tokens, eos_token=ends)
        except BaseException as error:  # files of a user's, in any state; Rust's panics are no Exceptions
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            text = one_line(str(error) or repr(error))
            raise InvalidRequestError(f"this model's tokenizer cannot be used with grammars: {text}") from error

    return Grammars(load)
