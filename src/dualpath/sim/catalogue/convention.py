"""What is counted when a model's KV bytes and FLOPs are stated: choices with a physical meaning, none of them a fit.

Publications differ in them and rarely say so. Each field is a question; ``PHYSICAL`` answers as the engine of this
project works, ``TABLE_1`` as the cache-compute table of the paper (arXiv 2602.21548) can be understood.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class WindowedKv(Enum):
    """Which KV of layers with a sliding window counts as loaded."""

    NONE = "none"  # a window is short beside the context
    WINDOW = "window"  # the last window_tokens: what attention needs
    STORED = "stored"  # every token's: Full Blocks hold all layers


class LatentForm(Enum):
    """How latent attention is computed over history."""

    ABSORBED = "absorbed"  # in latent space: no work per cached token
    EXPANDED = "expanded"  # keys and values of every head from the latents first


@dataclass(frozen=True, slots=True)
class Convention:
    windowed_kv: WindowedKv = WindowedKv.STORED
    index_keys: bool = True  # the keys of a sparse attention's indexer are loaded like all KV
    rotary_scores: bool = True  # latent attention: the rotary part of a score counts too
    every_logit: bool = False  # the output head runs for every new token, not for the last one only
    latent_form: LatentForm = LatentForm.ABSORBED

    def to_json(self) -> dict[str, str | bool]:
        return {
            "windowed_kv": self.windowed_kv.value,
            "index_keys": self.index_keys,
            "rotary_scores": self.rotary_scores,
            "every_logit": self.every_logit,
            "latent_form": self.latent_form.value,
        }

    def describe(self) -> str:
        """The answers, in the order of the fields, for a line under a table."""
        return "; ".join(
            (
                f"sliding-window layers' KV: {self.windowed_kv.value}",
                f"indexer keys {'loaded' if self.index_keys else 'not counted'}",
                f"rotary part of latent scores {'' if self.rotary_scores else 'not '}counted",
                f"output head for {'every new token' if self.every_logit else 'the last token'}",
                f"latent attention {self.latent_form.value}",
            )
        )


PHYSICAL = Convention()
TABLE_1 = Convention(WindowedKv.NONE, index_keys=False, rotary_scores=False, every_logit=True)
CONVENTIONS = {"table1": TABLE_1, "physical": PHYSICAL}


def all_conventions() -> Iterator[Convention]:
    """Every combination of answers, to see how much of a figure is a matter of convention."""
    booleans = (False, True)
    for answers in itertools.product(WindowedKv, booleans, booleans, booleans, LatentForm):
        yield Convention(*answers)
