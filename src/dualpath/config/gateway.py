"""The ``[gateway]`` table: where the HTTP server listens, whom it serves, and how much it takes from anybody."""

from __future__ import annotations

from dataclasses import dataclass

from dualpath.config.fields import Table, setting

MIB = 1024**2
# By vLLM's names.
TOOL_CALL_PARSERS = (
    *("auto", "none", "hermes", "qwen3_coder", "llama3_json", "mistral", "deepseek_v3", "deepseek_v32", "kimi_k2"),
    *("glm45", "minimax_m2", "seed_oss", "gemma4", "granite", "phi4_mini_json", "hunyuan_a13b", "nemotron_json"),
    *("pythonic", "openai"),
    # For forms that are read as others are.
    *("qwen3_xml", "deepseek_v31", "deepseek_v4", "glm47", "granite4", "llama4_json", "llama4_pythonic"),
    *("lfm2", "olmo3"),
)
REASONING_PARSERS = (
    *("auto", "none", "qwen3", "deepseek_r1", "mistral", "seed_oss", "gemma4", "openai_gptoss"),
    *("glm45", "glm47", "kimi_k2", "minimax_m2", "deepseek_v3", "deepseek_v4"),
)


@dataclass(frozen=True, kw_only=True)
class GatewayConfig(Table):
    """The HTTP server that clients talk to."""

    TABLE = "gateway"
    host: str = setting("127.0.0.1", help="address to listen on; 0.0.0.0 for all, then better with --api-key")
    port: int = setting(8000, minimum=0, maximum=65535, help="TCP port; 0 takes a free one and prints it")
    api_keys: tuple[str, ...] = setting(
        (),
        flag="api-key",
        metavar="KEY",
        none_means="open to all",
        help="a key that clients must send as bearer token; may be repeated; keep it out of sight with --config",
    )
    admin_keys: tuple[str, ...] = setting(
        (),
        flag="admin-key",
        metavar="KEY",
        none_means="every key sees its own requests only, and the cluster's statistics",
        help="a key like --api-key that also sees all keys' requests; where there is one, only such keys see the "
        "cluster's statistics; may be repeated",
    )
    share_cache: bool = setting(
        False,
        help="let every API key use KV that others' requests have stored; cached_tokens then tells a key whether "
        "others have sent the same text",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        flag="allowed-origin",
        metavar="ORIGIN",
        none_means="no page may",
        help="a web origin, such as https://chat.example.com, whose pages may call the API from a browser (CORS); "
        "* for all; may be repeated",
    )
    tool_call_parser: str = setting(
        "auto",
        choices=TOOL_CALL_PARSERS,
        help="form in which the model writes tool calls; auto is what its chat template says, none leaves them text",
    )
    reasoning_parser: str = setting(
        "auto",
        choices=REASONING_PARSERS,
        help="form in which the model writes its reasoning; auto is what its chat template says, none leaves it text",
    )
    max_body_bytes: int | None = setting(
        None,
        minimum=1024,
        none_means="64 bytes for each token of the longest context, and 1 MiB",
        help="largest request body; a larger one gets HTTP 413",
    )
    body_memory_bytes: int = setting(
        256 * MIB, minimum=MIB, help="request bodies that are held at once while they are read and tokenised; more wait"
    )
    admission_timeout_s: float = setting(
        30.0, above=0, maximum=3600, help="longest wait for body memory, or to be tokenised; then HTTP 429"
    )
    max_connections: int | None = setting(
        None,
        minimum=1,
        maximum=1_000_000,
        none_means="half of the files that the process may open, at most 4096",
        help="connections at once; beyond it those on which no request runs are closed, then new ones get HTTP 503",
    )
    header_timeout_s: float = setting(
        10.0, above=0, maximum=3600, help="longest time for a request's header to come; then HTTP 408"
    )
    body_timeout_s: float = setting(
        60.0, above=0, maximum=3600, help="longest time for a request's body to come; then HTTP 408"
    )
    keep_alive_s: float = setting(30.0, above=0, maximum=3600, help="a connection without a request is closed after it")
    send_timeout_s: float = setting(
        120.0, above=0, maximum=86400, help="a client that takes nothing of its answer for so long is cut off"
    )
    stream_ping_s: float = setting(
        5.0,
        above=0,
        maximum=3600,
        help="a stream that has nothing to say for so long gets its headers, if it has none, and a ping, so that "
        "nobody between gives it up; until then a failure has an HTTP status of its own",
    )
    drain_s: float = setting(30.0, minimum=0, maximum=3600, help="seconds that running requests get after Ctrl-C")
