"""Checks that each token of an answer is one that the weights named for it can have made.

An answer may go on with KV of former weights where these change (it was kept), and begin anew with KV of the present
ones wherever it was resumed: both are followed, and every token must be what one of them makes.
"""

from __future__ import annotations

from collections.abc import Sequence

from dualpath.testing.hash_model import ROW_BYTES, Truth, grow, next_token

_Layers = tuple[bytes, ...]  # KV of all tokens so far, one string of rows for each layer


class AnswerCheck:
    def __init__(self, truth: Truth, prompt: Sequence[int]) -> None:
        self._truth = truth
        self._tokens = list(prompt)
        self._states: list[_Layers] = []  # KV that the next token's may follow, without that of the last token

    def expected(self, weights: Sequence[str]) -> set[int]:
        """What may come next where one of these has made it."""
        return {next_token(kv, name) for name in weights for kv in self._following(name)}

    def take(self, token_id: int, weights: Sequence[str]) -> bool:
        """Whether it is right. More than one weights: it is not known which of them made it."""
        right = [kv for name in weights for kv in self._following(name) if next_token(kv, name) == token_id]
        self._states = list(dict.fromkeys(right))
        self._tokens.append(token_id)
        return bool(right)

    def _following(self, weights: str) -> list[_Layers]:
        """KV of all tokens, the last one's by these weights: behind what was there, or all of it by these."""
        last = self._tokens[-1:]
        found = [self._truth.kv(tuple(self._tokens), weights)]
        for before in self._states:
            new = tuple(rows + grow(rows[-ROW_BYTES:], last, layer, weights)[0] for layer, rows in enumerate(before))
            if new not in found:
                found.append(new)
        return found


def stored_sequences(
    truth: Truth, prompt: Sequence[int], generated: Sequence[int], num_tokens: int, weights: str
) -> list[tuple[int, ...]]:
    """What blocks of these weights may hold of a request: what it was seen to generate, and what nobody has seen.

    An engine may have gone on by itself behind any of its tokens, up to ``num_tokens``, and stored that.
    """
    known = (*prompt, *generated)
    out = [known]
    for length in range(len(generated) + 1):
        so_far = known[: len(prompt) + length]
        if length < num_tokens and (length == len(generated) or truth.next_token(so_far, weights) != generated[length]):
            out.append((*so_far, *truth.answer(so_far, num_tokens - length, weights)))
    return out
