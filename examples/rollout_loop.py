"""An RL loop without the learning: agents roll out, a step of noise makes new weights, agents roll out again.

    python examples/rollout_loop.py --model DIR --steps 3 --agents 8

Without --model a tiny one is made. Each step runs the same agents. What one step has stored is never found by the next,
whose weights are others; agents that a step did not finish are gone on with; at the end the first weights come back,
and find all that they had stored.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import dualpath
from dualpath.models.init import init_model
from dualpath.models.noise import add_noise
from dualpath.serving.api import Agent, Rollout, Session

TURNS, APPENDED, GENERATED = 5, 96, 24


def agent(number: int) -> Agent:
    """A conversation of a few turns: the prompt is all that was said, and a tool's answer that nobody computed."""

    async def run(session: Session) -> int:
        said = [(number * 131 + i * 17) % 90 + 32 for i in range(4 * APPENDED)]
        for turn in range(TURNS):
            answer = await session.complete(said, GENERATED, temperature=1.0, seed=number, ignore_eos=True)
            said += answer.token_ids
            said += [(number * 37 + turn * 53 + i) % 90 + 32 for i in range(APPENDED)]
        return len(said)

    return run


def told(name: str, rollout: Rollout, versions: set[str]) -> None:
    found = rollout.statistics()
    print(
        f"{name:28} {found['agents']:3} agents, {found['partial_agents']} unfinished, {found['requests']:3} requests, "
        f"hit rate {found['hit_rate']:6.1%}, {found['duration_s']:5.2f} s, weights {', '.join(sorted(versions))}"
    )


async def loop(model: Path, scratch: Path, steps: int, num_agents: int) -> None:
    agents = [agent(number) for number in range(num_agents)]
    async with dualpath.Cluster(
        model=model, store=f"file://{scratch}/kv", prefill=1, decode=2, max_context_tokens=2048
    ) as cluster:
        directory, first = model, model
        for step in range(steps):
            rollout = await cluster.rollout(agents, num_finished=max(1, num_agents - 1))
            told(f"step {step}", rollout, versions_of(rollout))
            rest = [agents[i] for i, result in enumerate(rollout.results) if result.is_partial]
            if rest:
                rollout = await cluster.rollout(rest)
                told(f"step {step}, the rest", rollout, versions_of(rollout))
            directory = await asyncio.to_thread(add_noise, directory, scratch / f"step-{step + 1}", seed=step)
            start_s = time.perf_counter()
            await cluster.update_weights(directory, f"step-{step + 1}")
            print(f"{'':28} new weights in {time.perf_counter() - start_s:.2f} s")
        await cluster.update_weights(first, "back")
        rollout = await cluster.rollout(agents)
        told("the first weights again", rollout, versions_of(rollout))


def versions_of(rollout: Rollout) -> set[str]:
    return {span.version for record in rollout.records for span in record.weight_versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a model directory")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--agents", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dualpath-rollout-") as folder:
        scratch = Path(folder)
        model = options.model or init_model("llama", scratch / "model")
        asyncio.run(loop(model, scratch, options.steps, options.agents))


if __name__ == "__main__":
    main()
