"""How likely a model finds continuations, by transformers alone: MODEL, and a file of (context, continuation) pairs.

Prints (log probability, whether greedy decoding would say it) for each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def likelihoods(model_dir: str, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    """An empty context stands for the end of the text before, as evaluation harnesses have it."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    found = []
    for context, continuation in pairs:
        before = tokenizer(context, add_special_tokens=False).input_ids or [tokenizer.eos_token_id]
        told = tokenizer(continuation, add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([before + told])).logits[0, len(before) - 1 : -1]
        chosen = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(told).unsqueeze(-1))
        found.append((chosen.sum().item(), logits.argmax(dim=-1).tolist() == told))
    return found


if __name__ == "__main__":
    print(json.dumps(likelihoods(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()))))
