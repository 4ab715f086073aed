"""The ``[vllm]`` table: which vLLM computes where ``[cluster] engine`` is vllm, and how clients are answered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dualpath.config.fields import Table, setting
from dualpath.core.errors import ConfigError

FRONT_DOORS = ("passthrough", "tokens")
JOIN_PATTERN = r"(prefill|decode)=https?://[^/,\s]+(,[^/,\s]+:[0-9]{1,5})?"
LINE_PORT_OFFSET = 100  # from a server's HTTP port to its control line's, where nobody says


@dataclass(frozen=True, kw_only=True)
class VllmConfig(Table):
    """vLLM servers as engines."""

    TABLE = "vllm"
    front_door: str = setting(
        "passthrough",
        choices=FRONT_DOORS,
        help="passthrough: vLLM's own chat, completions, responses and messages endpoints answer, with its templates, "
        "parsers and grammars; tokens: our endpoints answer, from vLLM's tokens",
    )
    python: Path | None = setting(
        None,
        flag="vllm-python",
        metavar="FILE",
        none_means="the Python that runs this",
        help="Python of an environment with vLLM, msgspec, xxhash, obstore and NIXL",
    )
    args: tuple[str, ...] = setting(
        (),
        flag="vllm-arg",
        metavar="ARG",
        help="another argument for every vLLM server that is started, e.g. --vllm-arg=--enforce-eager; may be repeated",
    )
    join: tuple[str, ...] = setting(
        (),
        flag="vllm-join",
        metavar="ROLE=URL[,LINE]",
        pattern=JOIN_PATTERN,
        pattern_means="prefill or decode, =, http://HOST:PORT and perhaps ,HOST:PORT of its control line",
        none_means="start --prefill and --decode servers",
        help="a server that runs already, as dualpath vllm config has it started, instead of starting any; its control "
        "line is on the same host, 100 ports further, if LINE is left out; may be repeated",
    )
    log_dir: Path | None = setting(
        None,
        flag="vllm-logs",
        metavar="DIR",
        none_means="a new directory below the system's temporary one, which is printed",
        help="where the logs of servers that are started go, a file for each; with [[nodes]] on each node's host",
    )
    start_s: float = setting(
        900.0, flag="vllm-start-s", above=0, maximum=86_400, help="how long the servers may take to be ready"
    )
    heartbeat_s: float = setting(
        10.0,
        flag="vllm-heartbeat-s",
        minimum=0.5,
        maximum=60,
        help="seconds without a sign of life after which a server's work goes elsewhere",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        roles = [place.partition("=")[0] for place in self.join]
        for role in ("prefill", "decode"):
            if roles and role not in roles:
                raise ConfigError(f"--vllm-join: there is no {role} server")
