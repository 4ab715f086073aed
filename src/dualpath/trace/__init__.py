"""Agent trajectories: recorded or synthesised conversations whose lengths a benchmark replays against a server.

Called by ``bench``, ``validation`` and ``cli``. Knows ``core`` only: no server, no model. A trace says how long
things are, never what they say; token ids are made up, the same ones every time (``tokens``).
"""

from dualpath.trace.hits import CacheHits, infinite_cache_hits
from dualpath.trace.load import load_trace
from dualpath.trace.read import read_trace
from dualpath.trace.recording import Recording
from dualpath.trace.stats import TraceStats, describe, format_table
from dualpath.trace.synth import SHAPES, synthesize
from dualpath.trace.tokens import prompt_tokens
from dualpath.trace.trajectory import Prefix, Round, Trajectory, read_trajectories, write_trajectories
from dualpath.trace.transform import limit_rounds, resample, scale, think_scale

__all__ = [
    "SHAPES",
    "CacheHits",
    "Prefix",
    "Recording",
    "Round",
    "TraceStats",
    "Trajectory",
    "describe",
    "format_table",
    "infinite_cache_hits",
    "limit_rounds",
    "load_trace",
    "prompt_tokens",
    "read_trace",
    "read_trajectories",
    "resample",
    "scale",
    "synthesize",
    "think_scale",
    "write_trajectories",
]
