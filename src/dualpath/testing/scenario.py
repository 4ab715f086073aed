"""What happens in a world, as data drawn from a seed: a cluster, agents with their turns, faults at their times.

Plain data, so that a failing scenario can be made smaller piece by piece and still be replayed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from dualpath.core.pause import PauseMode
from dualpath.testing.weights import BROKEN

_SHARE_WITH_UPDATES = 1 / 3
PATHS = ("prefill", "decode", "shorter", "split", "split", "round_robin")
STORM_S = 10.0  # faults begin within so long of the start

# What each kind of fault does, and to what. A mild one leaves a way round: every request must be answered all the same.
NODE_FAULTS = ("kill", "stop", "cut line", "hang line")
PATH_FAULTS = ("fail transfers", "hang transfers", "flip on network", "tear on network")
DAMAGE = ("flip on network", "tear on network", "flip staging")  # what digests are there for
STORAGE_FAULTS = (
    "fail reads",
    "hang reads",
    "flip reads",
    "tear reads",
    "fail writes",
    "hang writes",
    "tear writes",
    "full",
    "slow storage",
)
STORE_FAULTS = ("lose objects", "damage objects", "slow directory", "fail directory")
OTHER_FAULTS = ("flip staging", "jump clock", "jump wall clock", "restart scheduler", "stop scheduler")
GATEWAY_FAULTS = ("kill gateway", "kill gateway", "stop gateway", "cut desk", "restart scheduler")


@dataclass(frozen=True, slots=True)
class Turn:
    num_appended: int
    num_tokens: int
    pause_s: float = 0.0  # before it
    abort_after: int | None = None  # tokens after which the client goes away
    reads_slowly: bool = False


@dataclass(frozen=True, slots=True)
class Agent:
    number: int
    tenant: str
    start_s: float
    prefix: int  # agents with the same prefix begin with the same tokens
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    number: int
    at_s: float
    kind: str
    target: int  # which of the nodes, or engines, or objects; modulo how many there are
    for_s: float
    strength: float  # 0 to 1: how many of the transfers, objects, blocks it meets


@dataclass(frozen=True, slots=True)
class Update:
    """Whoever trains brings other weights, with a pause around it or without."""

    number: int
    at_s: float
    weights: str  # hash_model's names
    pause: PauseMode | None = None
    for_s: float = 0.0  # that the pause goes on with them


@dataclass(frozen=True, slots=True)
class Scenario:
    seed: int
    is_remote: bool  # nodes are processes of their own
    num_prefill: int
    num_decode: int
    engines_per_node: int
    path: str
    streams_layers: bool
    verifies: bool  # KV end to end; else storage reads only, and network and memory flip no bits
    num_prefill_slots: int
    num_decode_slots: int
    num_write_slots: int
    workspace_tokens: int
    device_kv_tokens: int
    max_batch_tokens: int
    capacity_blocks: int | None
    storage_delay_s: float
    network_delay_s: float
    compute_scale: float  # how slow forwards are
    restarts_after_s: float  # a node that was killed
    agents: tuple[Agent, ...]
    faults: tuple[Fault, ...]
    num_gateways: int = 0  # processes of their own; none: the scheduler's process is the gateway
    updates: tuple[Update, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """All that there may be, the start's first."""
        names = ("", *(update.weights for update in self.updates if update.weights != BROKEN))
        return tuple(dict.fromkeys(names))

    @property
    def max_prompt_tokens(self) -> int:
        from dualpath.testing.hash_model import BLOCK_TOKENS

        slots = min(self.num_prefill_slots, self.num_decode_slots) * BLOCK_TOKENS
        return min(slots, self.workspace_tokens, self.device_kv_tokens - 1)

    def keep(
        self, agents: set[int] | None, faults: set[int] | None, turns: int | None, updates: set[int] | None = None
    ) -> Scenario:
        """A part of it; None: all."""
        kept = [a for a in self.agents if agents is None or a.number in agents]
        return replace(
            self,
            agents=tuple(replace(agent, turns=agent.turns[:turns]) for agent in kept),
            faults=tuple(f for f in self.faults if faults is None or f.number in faults),
            updates=tuple(u for u in self.updates if updates is None or u.number in updates),
        )


def draw(seed: int) -> Scenario:
    """The scenario of a seed."""
    dice = random.Random(f"scenario {seed}")
    is_remote = dice.random() < 0.6
    num_prefill, num_decode = dice.choice([(1, 1), (1, 2), (1, 2), (2, 1), (2, 2)])
    is_small = dice.random() < 0.3
    slots = (24, 24, 1) if is_small else (60, 60, 2)
    scenario = Scenario(
        seed=seed,
        is_remote=is_remote,
        num_prefill=num_prefill,
        num_decode=num_decode,
        engines_per_node=2 if dice.random() < 0.15 else 1,
        path=dice.choice(PATHS),
        streams_layers=dice.random() < 0.85,
        verifies=dice.random() < 0.6,
        num_prefill_slots=slots[0],
        num_decode_slots=slots[1],
        num_write_slots=slots[2],
        workspace_tokens=dice.choice([96, 160]),
        device_kv_tokens=dice.choice([112, 160]) if is_small else 400,
        max_batch_tokens=dice.choice([16, 64, 8192]),
        capacity_blocks=dice.choice([None, None, 40, 100]),
        storage_delay_s=dice.choice([0.0, 0.01, 0.1]),
        network_delay_s=dice.choice([0.0, 0.005, 0.03]),
        compute_scale=dice.choice([1.0, 1.0, 1.0, 30.0]),
        restarts_after_s=dice.choice([0.05, 0.5, 3.0, 12.0]),
        agents=(),
        faults=(),
    )
    is_late = dice.random() < 0.3
    if is_late:  # what arrives after its time meets memory that others use by then, and no digest finds it
        scenario = replace(scenario, verifies=False, num_prefill=2, num_decode=1, streams_layers=True)
        scenario = replace(scenario, num_prefill_slots=40, num_decode_slots=40)
    num_agents = 6 if is_late else dice.choice([2, 3, 5, 8])
    agents = tuple(_agent(dice, number, scenario.max_prompt_tokens) for number in range(num_agents))
    faults = _late(dice, scenario) if is_late else _faults(dice, scenario)
    scenario = replace(scenario, agents=agents, faults=faults, updates=_updates(seed))
    return _with_partitions(_with_replaced_schedulers(_with_gateways(scenario))) if is_remote else scenario


def _updates(seed: int) -> tuple[Update, ...]:
    """In every third world, from dice of its own. Few weights, so that there are steps back."""
    dice = random.Random(f"updates {seed}")
    if dice.random() > _SHARE_WITH_UPDATES:
        return ()
    times_s = sorted(round(dice.uniform(0.2, STORM_S), 3) for _ in range(dice.choice([1, 2, 4])))
    names = ("1", "1", "2", "", BROKEN)
    pauses = (None, None, PauseMode.KEEP, PauseMode.KEEP, *PauseMode)
    return tuple(Update(n, at_s, dice.choice(names), dice.choice(pauses)) for n, at_s in enumerate(times_s))


def _with_gateways(scenario: Scenario) -> Scenario:
    """Of some worlds, and faults of theirs. From dice of its own: others fall as they did without."""
    dice = random.Random(f"gateways {scenario.seed}")
    if dice.random() < 0.5:
        return scenario
    number = max((fault.number for fault in scenario.faults), default=-1) + 1
    faults = tuple(
        Fault(
            number + i,
            dice.uniform(0, STORM_S),
            dice.choice(GATEWAY_FAULTS),
            dice.randrange(6),
            dice.choice([0.3, 2, 6]),
            0.3,
        )
        for i in range(dice.choice([0, 1, 2, 3]))
    )
    return replace(scenario, num_gateways=dice.choice([1, 2, 2]), faults=scenario.faults + faults)


def _with_replaced_schedulers(scenario: Scenario) -> Scenario:
    """Where there are gateways some pauses are long, and the scheduler dies in them. From dice of its own."""
    dice = random.Random(f"pauses {scenario.seed}")
    if not scenario.num_gateways:
        return scenario
    updates, faults = list[Update](), list(scenario.faults)
    number = max((fault.number for fault in faults), default=-1) + 1
    for update in scenario.updates:
        if update.pause is not None and dice.random() < 0.6:
            update = replace(update, for_s=dice.choice([1.0, 3.0, 6.0]))
            at_s = update.at_s + dice.uniform(0.0, update.for_s)
            faults.append(Fault(number + len(updates), at_s, "restart scheduler", 0, 0.0, 1.0))
        updates.append(update)
    return replace(scenario, updates=tuple(updates), faults=tuple(faults))


def _with_partitions(scenario: Scenario) -> Scenario:
    """A gateway does not reach a node that the scheduler does. Of some worlds, from dice of its own."""
    dice = random.Random(f"partitions {scenario.seed}")
    if not scenario.num_gateways or dice.random() < 0.5:
        return scenario
    number = max((fault.number for fault in scenario.faults), default=-1) + 1
    faults = tuple(
        Fault(number + i, dice.uniform(0, STORM_S), "part gateway", dice.randrange(24), dice.choice([0.3, 2, 6]), 1.0)
        for i in range(dice.choice([1, 2, 3]))
    )
    return replace(scenario, faults=scenario.faults + faults)


def _agent(dice: random.Random, number: int, max_prompt_tokens: int) -> Agent:
    turns: list[Turn] = []
    length = 0
    for _ in range(dice.randint(1, 5)):
        turn = Turn(
            num_appended=dice.randint(1, 12) if turns else dice.randint(3, 40),
            num_tokens=dice.randint(1, 10),
            pause_s=dice.choice([0.0, 0.0, dice.uniform(0, 0.5), dice.uniform(0, 3)]),
            abort_after=dice.randint(0, 4) if dice.random() < 0.08 else None,
            reads_slowly=dice.random() < 0.05,
        )
        length += turn.num_appended + turn.num_tokens
        if length >= max_prompt_tokens:
            break
        turns.append(turn)
    tenant, start_s = dice.choice(["", "", "red", "blue"]), dice.uniform(0, STORM_S / 4)
    return Agent(number, tenant, start_s, dice.randint(0, 2), tuple(turns))


def _late(dice: random.Random, scenario: Scenario) -> tuple[Fault, ...]:
    """Faults of one kind that leaves bytes behind, one after the other; then a death that nobody is left to know of."""
    kind = dice.choice(["fail transfers", "fail transfers", "hang reads"])
    for_s, strength = dice.uniform(0.2, 1.0), dice.choice([0.1, 0.3, 0.6])
    times_s = [0.3 + 0.8 * number * dice.uniform(0.5, 1.0) for number in range(8)]
    faults = tuple(
        Fault(number, round(at_s, 3), kind, dice.randrange(64), round(for_s, 3), strength)
        for number, at_s in enumerate(times_s)
    )
    if not scenario.is_remote:
        return faults
    at_s, target, late_s = dice.uniform(3.0, 7.0), dice.randrange(scenario.num_prefill), dice.uniform(1.5, 5.0)
    return (*faults, Fault(len(faults), round(at_s, 3), "kill with scheduler", target, round(late_s, 3), 1.0))


def _faults(dice: random.Random, scenario: Scenario) -> tuple[Fault, ...]:
    """Few kinds at a time, for they hide each other: of one theme mostly, sometimes of all."""
    nodes = NODE_FAULTS if scenario.is_remote else ("restart scheduler",)
    themes = [
        PATH_FAULTS,
        (*PATH_FAULTS, *nodes),
        STORAGE_FAULTS,
        (*STORAGE_FAULTS, *STORE_FAULTS),
        ("hang reads",),
        nodes,
        nodes[:2],
        nodes[2:] or nodes,
    ]
    everything = (*PATH_FAULTS, *STORAGE_FAULTS, *STORE_FAULTS, *OTHER_FAULTS, *nodes)
    theme = dice.choice(themes) if dice.random() < 0.7 else everything
    kinds = [kind for kind in theme if scenario.verifies or kind not in DAMAGE]
    chosen = dice.sample(kinds, dice.randint(1, min(3, len(kinds))))
    num_faults = dice.choice([0, 4, 8, 12, 16])
    if not num_faults and scenario.is_remote:
        return _late_sends(dice)
    return tuple(
        Fault(
            number=number,
            at_s=round(dice.uniform(0.0, STORM_S), 3),
            kind=dice.choice(chosen),
            target=dice.randrange(64),
            for_s=round(dice.choice([0.05, 0.5, 2.0, 5.0]) * dice.uniform(0.5, 2), 4),
            strength=dice.choice([0.05, 0.2, 0.5, 1.0]),
        )
        for number in range(num_faults)
    )


def _late_sends(dice: random.Random) -> tuple[Fault, ...]:
    """Lines that break with messages still on them: those come when another session has begun."""
    times_s = [dice.uniform(0.5, 0.6 * STORM_S) for _ in range(10)]
    return tuple(
        Fault(number, round(at_s, 3), "late sends", dice.randrange(64), round(dice.uniform(0.1, 0.5), 3), 0.5)
        for number, at_s in enumerate(times_s)
    )
