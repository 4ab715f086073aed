"""Time choosing one token for each request of a batch, from logits as a decode step leaves them.

``python benchmarks/sampling.py --vocab 151936 --batch 1,8,64``: milliseconds a call, for what requests may ask for.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from dualpath.core.request import SamplingParams
from dualpath.engine.sampling import SampleJob, sample

KINDS = {
    "greedy": {"temperature": 0.0},
    "temperature 1": {},
    "top_p 0.95": {"top_p": 0.95},
    "top_k 20, top_p 0.8": {"top_k": 20, "top_p": 0.8},
    "greedy, 5 logprobs": {"temperature": 0.0, "num_logprobs": 5},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--batch", default="1,8,64")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for size in map(int, args.batch.split(",")):
        logits = torch.randn(size, args.vocab, device=args.device) * 3
        for name, fields in KINDS.items():
            params = SamplingParams(max_tokens=1, seed=1, **fields)  # type: ignore[arg-type]  # each of them takes a float
            jobs = [SampleJob(params, position) for position in range(size)]
            times_s = []
            for _ in range(args.repeats):
                start_s = time.perf_counter()
                sample(logits, jobs)
                times_s.append(time.perf_counter() - start_s)
            ms = statistics.median(times_s) * 1e3
            print(f"batch {size:3}  {name:22} {ms:8.2f} ms  {ms / size:6.2f} ms a row", flush=True)


if __name__ == "__main__":
    main()
