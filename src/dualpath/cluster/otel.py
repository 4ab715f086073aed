"""Spans to an OpenTelemetry collector, by OTLP over HTTP. The SDK is imported only where an endpoint is configured."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

from dualpath import __version__
from dualpath.config import ObserveConfig
from dualpath.core import tracing
from dualpath.core.errors import ConfigError

_EXPORT_S = 5.0  # a collector that does not answer costs no more
_CLOSE_S = 6.0


class OtelSink:
    """A ``core.tracing.Sink``. A client's decision whether to sample is kept; of others' requests a share is taken."""

    def __init__(self, endpoint: str, sample: float, instance: str, exporter: Any = None) -> None:
        """``instance``: the name of this process. ``exporter``: instead of OTLP, for tests."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if exporter is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_S)
        resource = Resource.create(
            {"service.name": "dualpath", "service.version": __version__, "service.instance.id": instance}
        )
        self._provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sample)))
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("dualpath", __version__)
        self._w3c = TraceContextTextMapPropagator()

    def begin(self, name: str, parent: str, start_unix_s: float, *, is_server: bool = False) -> _Span:
        from opentelemetry.trace import SpanKind

        context = self._w3c.extract({"traceparent": parent}) if parent else None
        kind = SpanKind.SERVER if is_server else SpanKind.INTERNAL
        span = self._tracer.start_span(name, context, kind=kind, start_time=_nanoseconds(start_unix_s))
        return _Span(span)

    def close(self) -> None:
        """Send what is there, for a while: a process does not stay because its collector has gone. Blocks."""
        ending = threading.Thread(target=self._provider.shutdown, name="otel-end", daemon=True)
        ending.start()
        ending.join(_CLOSE_S)


class _Span:
    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Any) -> None:
        self._span = span
        found = span.get_span_context()
        self.traceparent = f"00-{found.trace_id:032x}-{found.span_id:016x}-01" if span.is_recording() else ""

    def end(self, end_unix_s: float, attributes: tracing.Attributes, error: str | None = None) -> None:
        self._span.set_attributes(attributes)
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(_nanoseconds(end_unix_s))


def install_sink(observe: ObserveConfig, instance: str) -> OtelSink | None:
    """For this process, if an endpoint is configured. Raises ConfigError where the SDK is not installed."""
    endpoint = observe.otlp_traces_endpoint
    if endpoint is None:
        return None
    for module in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        if not _is_installed(module):
            raise ConfigError("[observe] otlp_traces_endpoint needs OpenTelemetry: pip install 'dualpath[otel]'")
    sink = OtelSink(endpoint, observe.trace_fraction, instance)
    tracing.install(sink)
    return sink


def remove_sink(sink: OtelSink | None) -> None:
    """Blocks for seconds at most."""
    if sink is not None:
        tracing.install(None)
        sink.close()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _nanoseconds(unix_s: float) -> int:
    return int(unix_s * 1e9)
