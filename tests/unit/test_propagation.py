"""What a client's headers may do to the context of its request, to the log and to the processor."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
from opentelemetry import baggage, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.composite import CompositePropagator

from mackerel_otel_server.process import log
from mackerel_otel_server.tracing.requests import asgi, propagation, wsgi

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Extract = Callable[..., Context | None]


@pytest.fixture(autouse=True)
def propagators() -> Iterator[None]:
    """Use all that are installed."""
    before = propagate.get_global_textmap()
    found = [entry_point.load() for entry_point in entry_points(group="opentelemetry_propagator")]
    # "none" stands for None in older releases.
    propagate.set_global_textmap(CompositePropagator([each() for each in found if each is not None]))
    try:
        propagation.prepare(["b3"])
        yield
    finally:
        propagate.set_global_textmap(before)
        propagation.prepare(["tracecontext", "baggage"])


def from_environ(**headers: str) -> Context | None:
    environ = {f"HTTP_{name.upper()}": value for name, value in headers.items()}
    return propagation.extract(environ, wsgi.GETTER, has_headers=True)


def from_scope(**headers: str) -> Context | None:
    scope = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return propagation.extract(scope, asgi.GETTER, has_headers=True)


either = pytest.mark.parametrize("extract", [from_environ, from_scope])


def of(found: Context | None) -> tuple[trace.SpanContext, dict[str, Any]]:
    assert found is not None
    return trace.get_current_span(found).get_span_context(), dict(baggage.get_all(found))


@either
def test_what_is_within_the_limits_arrives(extract: Extract) -> None:
    state = ",".join(f"vendor{number}=value-{number}" for number in range(20))
    span, members = of(extract(traceparent=TRACEPARENT, tracestate=state, baggage="a=1 , b = two%20words;p=q,\tc=3"))
    assert f"{span.trace_id:032x}-{span.span_id:016x}" == TRACEPARENT[3:-3]
    assert len(span.trace_state) == 20
    assert members["a"] == "1"
    assert members["c"] == "3"
    longest = "k=" + "v" * 4000
    assert of(extract(baggage=longest))[1] == {"k": "v" * 4000}
    assert of(extract(b3=TRACEPARENT[3:-3] + "-1"))[0].span_id == span.span_id


@either
def test_what_is_longer_than_a_header_may_be_is_left_out(extract: Extract) -> None:
    assert of(extract(traceparent=f"{TRACEPARENT}-0"))[0] == trace.INVALID_SPAN_CONTEXT
    long_state = ",".join(f"vendor{number}={'v' * 50}" for number in range(20))
    span, _ = of(extract(traceparent=TRACEPARENT, tracestate=long_state))
    assert (span.is_valid, len(span.trace_state)) == (True, 0)
    assert of(extract(baggage="a=1," + "b" * 8192))[1] == {}
    assert len(of(extract(baggage=",".join(f"k{number}=v" for number in range(500))))[1]) == 180


HOSTILE = {
    "blanks": " " * 8000,
    "blanks in a member": f"a=b{' ' * 8000}c",
    "tabs": "\t" * 8000 + "x",
    "blanks and commas": " ," * 4000,
    "members that are none": ",".join("\x1b[31mred" for _ in range(180)),
    "control characters": "a=\x1b]0;title\x07" * 100,
    "other characters": "a=\xff\xfe" * 1000,
    "signs": "=;,=" * 2000,
    "a number": "0" * 8000,
    "pairs": ",".join(f"{number}=\x7f" for number in range(1000)),
    "the same key": ",".join(["a=1"] * 180),
    "lines": "a=1\r\nb=2" * 100,
}
NAMES = ("traceparent", "tracestate", "baggage", "b3", "x_b3_traceid", "x_b3_spanid", "x_b3_sampled", "uber_trace_id")


@either
@pytest.mark.parametrize("kind", HOSTILE)
def test_what_a_client_makes_up_costs_little_and_is_not_logged(
    extract: Extract, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    monkeypatch.setattr(log, "_write_to_host", lambda record: said.append(log.text(record)))
    for name in NAMES:
        said.clear()
        headers = {"traceparent": TRACEPARENT} | {name: HOSTILE[kind]}
        extract(**headers)
        assert caplog.messages == []
        # For debugging only, and with nothing of the client's.
        assert len(said) <= 1
        assert all(line.startswith("a request's headers about its context are too long") for line in said)
        started = time.thread_time()
        for _ in range(5):
            extract(**headers)
        cost = (time.thread_time() - started) / 5
        # It was 0.15 s for blanks; the most that is left is 180 members.
        assert cost < 0.02, (name, cost)


@either
def test_thousands_of_headers_are_not_all_looked_at(extract: Extract) -> None:
    seen: list[str] = []

    class Jaeger(CompositePropagator):
        """Looks for its headers among all names, as some do."""

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            seen.extend(getter.keys(carrier))
            return context

    propagate.set_global_textmap(Jaeger([]))
    extract(**{f"uberctx_{number}": "v" for number in range(5000)})
    assert len(seen) == 180


def test_what_a_propagator_logs_at_another_time_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    before = len(logging.getLogger("opentelemetry.trace.span").filters)
    propagation.prepare(["b3"])
    assert len(logging.getLogger("opentelemetry.trace.span").filters) == before == 1
    trace.TraceState([("a", "1")]).add("A B", "2")
    assert [record.name for record in caplog.records] == ["opentelemetry.trace.span"]


def test_an_exception_of_a_propagator_leaves_no_thread_silent(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(CompositePropagator):
        def extract(self, *_: Any, **__: Any) -> Any:
            sys.exit(3)

    propagate.set_global_textmap(Failing([]))
    with pytest.raises(SystemExit):
        from_environ(traceparent=TRACEPARENT)
    logging.getLogger("opentelemetry.trace.span").warning("heard")
    assert "heard" in caplog.messages
