"""Requests that no well-behaved client sends: broken HTTP, broken JSON, and good JSON with everything wrong in it.

The same seed gives the same requests.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dualpath.bench.odd_bodies import BODIES, PATHS

_FIELDS = (
    *("prompt", "messages", "tools", "max_tokens", "temperature", "top_p", "top_k", "n", "seed", "stop", "logprobs"),
    *("stop_token_ids", "stream", "stream_options", "cache_salt", "echo", "best_of", "suffix", "model", "tokens"),
    *("tool_choice", "chat_template_kwargs", "reasoning_effort", "max_completion_tokens", "top_logprobs", "priority"),
    *("system", "stop_sequences", "thinking", "output_config", "metadata", "input", "instructions", "text", "include"),
    *("reasoning", "max_output_tokens", "previous_response_id", "parallel_tool_calls", "service_tier"),
    *("response_format", "logit_bias", "add_generation_prompt", "continue_final_message", "ignore_eos", "user"),
)
# As JSON text, since json.dumps cannot write them all.
_VALUES = (
    *("null", "true", "false", "0", "-1", "3", "1.5", "-0.0", "1e-320", "1e308", "1e400", "NaN", "Infinity"),
    *("9223372036854775807", "9223372036854775808", "-18446744073709551617", "1" * 400, "1" * 5000, "0x10", "01"),
    *('""', '" "', '"x"', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\uD83D\\uDE00"', '"\u202e\ufeff"', '"\x01"'),
    *("[]", "{}", "[[]]", "[{}]", "[null]", '["x", 1]', "[1e9]", "[-1]", "[true]", '{"a": {"a": {}}}', "[[1, 2], [3]]"),
    *('"' + "z" * 3000 + '"', "[" + "1," * 500 + "1]", "[" * 90 + "]" * 90, '{"a":' * 90 + "1" + "}" * 90),
    *('{"role": "user"}', '[{"role": "user", "content": null}]', '[{"role": 5}]', '[{"role": "", "content": [{}]}]'),
    '[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "' + "[" * 3000 + '"}}]}]',
    '[{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "\\"\\\\ud800\\""}}]}]',
    '[{"role": "assistant", "tool_calls": "x"}, {"role": "user", "content": [{"type": "image_url"}]}]',
)
_WHOLE = (
    *(b"", b" ", b"null", b"1", b'"x"', b"[]", b"[1]", b"{", b"}", b"{}", b"{]", b'{"prompt":', b"\x00", b"\xff\xfe"),
    *(b'\xef\xbb\xbf{"prompt": "x"}', '{"prompt": "x"}'.encode("utf-16"), b'{"prompt": "\xff\xc0\x80"}', b"// x\n{}"),
    *(b"[" * 20000, b'{"a":' * 5000, b'{"messages": ' + b"[" * 900 + b"]" * 900 + b"}", b'{"prompt": "x",}'),
    *(b'{"prompt": "x", "prompt": 5}', b"prompt=x&max_tokens=2", b"<a/>", b'{"prompt": ["' + b"x" * 9000),
    b'{"messages": [' + b'{"role":"u"},' * 900 + b'{"role":"u"}], "max_tokens": 1}',
    b'{"prompt": [' + b"7," * 4000 + b'7], "max_tokens": 1}',
    b'{"prompt": "' + b"y " * 20000 + b'", "max_tokens": 1}',
)
_TYPES = (
    "application/json",
    "text/plain",
    "multipart/form-data",
    "application/x-www-form-urlencoded",
    "\xe9",
    "a" * 900,
)
_METHODS = (
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "CONNECT",
    "BREW",
    "get",
    "P\x00ST",
    "",
)
_TARGETS = (
    *(
        "/",
        "*",
        "//",
        "/v1/",
        "/v1/completions/",
        "/%ff%00",
        "/../../etc/passwd",
        "/v1/models/%ed%a0%80",
        "/?" + "a=" * 99,
    ),
    *("http://other/v1/models", "/v1/dualpath/requests?limit=" + "9" * 5000, "/v1/dualpath/requests?limit=%00"),
    *("/v1/dualpath/requests?limit=-1", "/v1/models/" + "m" * 3000, "/\xff", "/a b", "", "/" + "x" * 70000, "x:1"),
)
_HEADERS = (
    *(
        "Host: [",
        "Host: a, b",
        "Host:",
        "Authorization: Bearer \xff",
        "Authorization: \x7f",
        "Authorization: Basic eA==",
    ),
    *("Expect: 100-continue", "Expect: x", "Upgrade: websocket\r\nConnection: upgrade", "Upgrade: h2c", "X : y", ": x"),
    *(
        "Content-Encoding: gzip",
        "Connection: close",
        "Connection: keep-alive, x",
        "Cookie: \x00",
        "No colon",
        " folded",
    ),
    *("Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked", "Content-Length: -1", "Content-Length: 1e3"),
    *(
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: " + "9" * 30,
        "Content-Length: 99999999999",
        "Accept: x",
    ),
    *("X: " + "y" * 30000, "\r\n".join(f"X-{i}: y" for i in range(300))),
)
_CHUNKED = (
    *(
        b"5\r\n{",
        b"z\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}",
        b"2\r\n{}\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b"2\r\n{}\r\n0\r\nX: y",
    ),
    *(b"2;a=b\r\n{}\r\n0\r\n\r\n", b"2\r\n{}0\r\n\r\n", b"ffffffffffffffff\r\n{}", b"f" * 40 + b"\r\n{}", b"0\r\n\r\n"),
    b"1\r\n{\r\n" * 300 + b"0\r\n\r\n",
)


@dataclass(frozen=True, slots=True)
class OddRequest:
    kind: str
    raw: bytes  # what goes over a connection of its own


def odd_requests(seed: int, number: int) -> Iterator[OddRequest]:
    rng = random.Random(seed)
    kinds: list[tuple[str, Callable[[random.Random], bytes]]] = [
        ("field", _field),
        ("field", _field),
        ("fields", _fields),
        ("nested", _nested),
        ("nested", _nested),
        ("whole body", lambda rng: post(rng.choice(PATHS), rng.choice(_WHOLE))),
        ("damaged body", _damaged),
        (
            "content type",
            lambda rng: _framed("POST", rng.choice(PATHS), _body(rng), [f"Content-Type: {rng.choice(_TYPES)}"]),
        ),
        ("request line", _request_line),
        ("header", lambda rng: _framed("POST", rng.choice(PATHS), _body(rng), [rng.choice(_HEADERS)])),
        ("length", _length),
        ("chunked", _chunked),
        ("pipelined", _pipelined),
        ("noise", _noise),
    ]
    for _ in range(number):
        kind, make = rng.choice(kinds)
        yield OddRequest(kind, make(rng))


def post(path: str, body: bytes) -> bytes:
    return _framed("POST", path, body, [])


def _framed(method: str, target: str, body: bytes, headers: list[str], version: str = "HTTP/1.1") -> bytes:
    """One well-framed request, whatever is in it; headers given here stand in for the usual ones of that name."""
    names = {line.split(":")[0].lower() for header in headers for line in header.split("\r\n")}
    usual = ["Host: x", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    if "transfer-encoding" in names:
        usual.pop()
    lines = [f"{method} {target} {version}", *headers]
    lines += [line for line in usual if line.split(":")[0].lower() not in names]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _body(rng: random.Random) -> bytes:
    return json.dumps(BODIES[rng.choice(PATHS)]).encode()


def _nested(rng: random.Random) -> bytes:
    """A good body in which any one value, however deep, is another."""
    path = rng.choice(PATHS)
    body: Any = json.loads(json.dumps(BODIES[path]))
    at: Any = body
    while True:
        key = rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        if not isinstance(at[key], dict | list) or not at[key] or rng.random() < 0.15:
            break
        at = at[key]
    mark = "replaced-here"
    at[key] = mark
    return post(path, json.dumps(body).replace(json.dumps(mark), rng.choice(_VALUES)).encode())


def _with(path: str, fields: dict[str, str]) -> bytes:
    members = {name: json.dumps(value) for name, value in BODIES[path].items()} | fields
    return ("{" + ", ".join(f"{json.dumps(name)}: {value}" for name, value in members.items()) + "}").encode()


def _field(rng: random.Random) -> bytes:
    path = rng.choice(PATHS)
    return post(path, _with(path, {rng.choice(_FIELDS): rng.choice(_VALUES)}))


def _fields(rng: random.Random) -> bytes:
    path = rng.choice(PATHS)
    return post(path, _with(path, {rng.choice(_FIELDS): rng.choice(_VALUES) for _ in range(rng.randint(2, 6))}))


def _damaged(rng: random.Random) -> bytes:
    path = rng.choice(PATHS)
    body = bytearray(json.dumps(BODIES[path]).encode())
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(body))
        damage = rng.randrange(4)
        if damage == 0:
            del body[at:]
            break
        if damage == 1:
            body[at] = rng.randrange(256)
        elif damage == 2:
            body.insert(at, rng.choice(b'"\\{}[]:,\x00\x1f\x7f\xff\xed\n'))
        else:
            del body[at : at + rng.randint(1, 8)]
        if not body:
            break
    return post(path, bytes(body))


def _request_line(rng: random.Random) -> bytes:
    version = rng.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "HTTP/0.9", "HTP/1.1", "HTTP/1.1 x", ""))
    target = rng.choice((*_TARGETS, *PATHS, "/v1/models", "/health", "/metrics", "/v1/dualpath/stats"))
    raw = _framed(rng.choice((rng.choice(_METHODS), "GET", "POST")), target, _body(rng), [], version)
    return raw.replace(b"Host: x\r\n", b"") if rng.random() < 0.2 else raw


def _length(rng: random.Random) -> bytes:
    """A length that is not the body's."""
    body = _body(rng)
    length = max(0, len(body) + rng.choice((-20, -1, 1, 5, 10_000)))
    return _framed("POST", rng.choice(PATHS), body, [f"Content-Length: {length}"])


def _chunked(rng: random.Random) -> bytes:
    headers = ["Transfer-Encoding: chunked"] + (["Content-Length: 2"] if rng.random() < 0.2 else [])
    return _framed("POST", rng.choice((*PATHS, "/health", "/none")), rng.choice(_CHUNKED), headers)


def _pipelined(rng: random.Random) -> bytes:
    first = _framed(*rng.choice((("GET", "/health", b""), ("POST", "/tokenize", _body(rng)))), [])
    return first * rng.randint(1, 20) + rng.choice((b"\r\n\r\n", b"\x00" * 50, b"GET", _noise(rng), _field(rng)))


def _noise(rng: random.Random) -> bytes:
    start = rng.choice((b"", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n", b"POST / HTTP/1.1\r\n"))
    return start + rng.randbytes(rng.randint(1, 3000)) + rng.choice((b"", b"\r\n\r\n"))
