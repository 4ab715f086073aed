"""A tiny HTTP proxy that misbehaves on request: errors, answers cut short or held back; it keeps a record.

It passes the Host header on as it came, since S3 signatures cover it.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Seen:
    """One request and how it was answered."""

    method: str
    path: str
    num_bytes: int  # of its body
    status: int


@dataclass(frozen=True)
class Fault:
    """What happens to one request. The defaults pass it on unharmed."""

    status: int = 0  # answer with this one, without asking the server
    cut_after: int | None = None  # close the connection after so many bytes of the answer's body
    is_held: bool = False  # pass half of the answer on, the rest after ``FaultyProxy.let_go``
    drip_s: float = 0.0  # pass the answer on in small pieces, with this pause between two
    gives_ranges: bool = False  # answer a range with 206, as S3 does and rclone does not


Choose = Callable[[str, str], Fault]  # (method, path)
_PIECES = 20


class FaultyProxy:
    """Threads of one server. ``choose`` may be set at any time; it is asked once per request."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.choose: Choose = lambda method, path: Fault()
        self.seen: list[Seen] = []
        self._goes_on = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def fail(self, method: str, times: int = 1_000_000, **fault: object) -> None:
        """The next ``times`` requests of this method have this fault."""
        left = [times]

        def choose(used: str, path: str) -> Fault:
            if used != method or left[0] == 0:
                return Fault()
            left[0] -= 1
            return Fault(**fault)  # type: ignore[arg-type]

        self.choose = choose

    def heal(self) -> None:
        self.choose = lambda method, path: Fault()

    def let_go(self) -> None:
        self._goes_on.set()

    def wait_until_let_go(self) -> None:
        self._goes_on.wait(60)

    def num_seen(self, method: str) -> int:
        return sum(seen.method == method for seen in self.seen)

    def close(self) -> None:
        self.let_go()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def faulty_proxy(upstream_port: int) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(upstream_port)
    try:
        yield proxy
    finally:
        proxy.close()


def _handler(proxy: FaultyProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = proxy.choose(self.command, self.path)
            status, headers, answer = (fault.status, {}, b"") if fault.status else self._ask(body)
            requested = self.headers.get("Range", "")
            if fault.gives_ranges and status == 200 and requested:
                first, last = (int(number) for number in requested.removeprefix("bytes=").split("-"))
                headers["Content-Range"] = f"bytes {first}-{min(last, len(answer) - 1)}/{len(answer)}"
                status, answer = 206, answer[first : last + 1]
            proxy.seen.append(Seen(self.command, self.path, len(body), status))
            self._answer(status, headers, answer, fault)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = do_any

        def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=30)
            try:
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        upstream.putheader(name, value)
                upstream.endheaders(body)
                reply = upstream.getresponse()
                return reply.status, dict(reply.getheaders()), reply.read()
            except OSError:
                return 502, {}, b""
            finally:
                upstream.close()

        def _answer(self, status: int, headers: dict[str, str], answer: bytes, fault: Fault) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in ("connection", "content-length", "transfer-encoding", "date", "server"):
                    self.send_header(name, value)
            length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(answer))
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command == "HEAD":
                return
            if fault.cut_after is not None:
                self.wfile.write(answer[: fault.cut_after])
                self.close_connection = True
                return
            step = max(
                1, len(answer) // 2 if fault.is_held else len(answer) // _PIECES if fault.drip_s else len(answer)
            )
            for start in range(0, len(answer), step):
                if start and fault.is_held:
                    proxy.wait_until_let_go()
                if start and fault.drip_s:
                    time.sleep(fault.drip_s)
                self.wfile.write(answer[start : start + step])
                self.wfile.flush()

        def log_message(self, *_: object) -> None: ...

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the client has gone
                self.close_connection = True

    return Handler
