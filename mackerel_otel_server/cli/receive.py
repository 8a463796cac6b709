"""``mackerel-otel-server receive``: a far end for one's own machine that prints each trace as a tree."""

from __future__ import annotations

import argparse
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from mackerel_otel_server.cli.receiver import API_KEY_HEADER, ReceivedRequest, ReceivedSpan, Receiver
from mackerel_otel_server.cli.text import complain, counted, one_line, say, stdout_encoding
from mackerel_otel_server.cli.tree import render

if TYPE_CHECKING:
    from types import FrameType

DEFAULT_PORT = 4318
ANY_KEY = ""
QUIET_SECONDS = 1.0
# A signal that comes just before the main thread begins to wait, or that another thread takes, does not wake it up.
LONGEST_WAIT = 0.5
# A trace that never falls silent is printed in parts rather than kept without limit.
MOST_SPANS_HELD = 10_000

# None: a signal asks to stop.
_Event: TypeAlias = Sequence[ReceivedSpan] | ReceivedRequest | None


@dataclass
class _Trace:
    """The spans of one trace so far and when the last of them came."""

    spans: list[ReceivedSpan] = field(default_factory=list)
    last: float = 0.0

    def due(self) -> float:
        return self.last + QUIET_SECONDS if len(self.spans) < MOST_SPANS_HELD else 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``receive`` understands."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=_port, default=DEFAULT_PORT, help="0: any free one (default: %(default)s)")
    parser.add_argument(
        "--require-key",
        metavar="KEY",
        nargs="?",
        const=ANY_KEY,
        help=f"refuse requests whose {API_KEY_HEADER} is not KEY; without KEY, requests that have none",
    )


def run(args: argparse.Namespace) -> int:
    """Receive and print until SIGINT or SIGTERM.

    Returns:
        0, or 1 when the address cannot be listened on.
    """
    events: SimpleQueue[_Event] = SimpleQueue()
    receiver = Receiver(
        args.host,
        args.port,
        api_key=args.require_key or None,
        require_key=args.require_key is not None,
        on_spans=events.put,
        on_request=events.put,
        keep=False,
    )

    def stop(number: int, _frame: FrameType | None) -> None:
        # put() may be called from a signal handler, raising anywhere would tear a tree. A second signal does kill.
        signal.signal(number, signal.SIG_DFL)
        events.put(None)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        receiver.__enter__()
    except OSError as error:
        complain(
            f"cannot listen on {args.host} port {args.port} ({error.strerror or error}): nothing is received. Stop "
            "what listens there, or type: mackerel-otel-server receive --port 0"
        )
        return 1
    try:
        _greet(receiver.url, key=args.require_key)
        _print_until_stopped(events)
    finally:
        receiver.__exit__(None, None, None)
    return 0


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: expected 0 to 65535")


def _greet(url: str, *, key: str | None) -> None:
    say(f"receiving on {url}, Ctrl-C ends. In another terminal:")
    variables = f"MACKEREL_OTEL_ENDPOINT={url} MACKEREL_APIKEY={'made-up' if key is None else '...'}"
    say(f"  {variables} gunicorn -c python:mackerel_otel_server.conf mysite.wsgi")
    say()


def _print_until_stopped(events: SimpleQueue[_Event]) -> None:
    traces: dict[str, _Trace] = {}
    spans = answered = refused = 0
    while True:
        event: _Event = ()
        with suppress(Empty):
            event = events.get(timeout=_until_due(traces))
        if event is None:
            break
        if isinstance(event, ReceivedRequest):
            if event.message:
                refused += 1
                say(_refusal(event))
            else:
                answered += 1
        else:
            spans += len(event)
            _add(traces, event)
        _print_due(traces, time.monotonic())
    _print_due(traces, float("inf"))
    say(
        f"received {counted(spans, 'span')} in {counted(answered, 'request')}"
        + (f", refused {counted(refused, 'request')}" if refused else "")
    )


def _until_due(traces: dict[str, _Trace]) -> float:
    due = min((trace.due() for trace in traces.values()), default=float("inf"))
    return min(LONGEST_WAIT, max(0.0, due - time.monotonic()))


def _add(traces: dict[str, _Trace], spans: Sequence[ReceivedSpan]) -> None:
    for span in spans:
        trace = traces.setdefault(span.trace_id, _Trace())
        trace.spans.append(span)
        trace.last = time.monotonic()


def _print_due(traces: dict[str, _Trace], now: float) -> None:
    for trace_id in [trace_id for trace_id, trace in traces.items() if trace.due() <= now]:
        for line in render(traces.pop(trace_id).spans, encoding=stdout_encoding()):
            say(line)


def _refusal(request: ReceivedRequest) -> str:
    line = f"refused {request.method} {one_line(request.path, 100)} with {request.status}: {request.message}"
    if request.message == "Invalid API Key":
        given = API_KEY_HEADER in request.headers
        line += f" ({'it is not the one of --require-key' if given else f'the request has no {API_KEY_HEADER}'})"
    return line
