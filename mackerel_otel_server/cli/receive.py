"""``mackerel-otel-server receive``: a far end for one's own machine that shows traces as trees, JSON or a page."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mackerel_otel_server.cli import arguments
from mackerel_otel_server.cli.receiver import addresses, web
from mackerel_otel_server.cli.receiver.backlog import Backlog, LeftOut
from mackerel_otel_server.cli.receiver.printing import Lines, Output, Trees
from mackerel_otel_server.cli.receiver.receiver import API_KEY_HEADER, ReceivedRequest, ReceivedSpan, Receiver
from mackerel_otel_server.cli.receiver.traces import Traces
from mackerel_otel_server.cli.text import complain, counted, one_line, reader_has_left
from mackerel_otel_server.settings.urls import is_loopback

if TYPE_CHECKING:
    import argparse
    from types import FrameType

DEFAULT_PORT = 4318
ANY_KEY = ""
# A signal that comes just before the main thread begins to wait, or that another thread takes, does not wake it up.
LONGEST_WAIT = 0.5


@dataclass
class _Received:
    """What comes in: counted here, printed later."""

    backlog: Backlog = field(default_factory=Backlog)
    traces: Traces | None = None
    spans: int = 0
    answered: int = 0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add_spans(self, spans: Sequence[ReceivedSpan]) -> None:
        with self.lock:
            self.spans += len(spans)
        if self.traces:
            self.traces.add(spans)
        self.backlog.add_spans(spans)

    def add_request(self, request: ReceivedRequest) -> None:
        with self.lock:
            self.refused += bool(request.message)
            self.answered += not request.message
        if request.message:
            self.backlog.add_refusal(_refusal(request))

    def __str__(self) -> str:
        with self.lock:
            refused = f", refused {counted(self.refused, 'request')}" if self.refused else ""
            return f"received {counted(self.spans, 'span')} in {counted(self.answered, 'request')}{refused}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``receive`` understands."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument(
        "--port", type=arguments.port, default=DEFAULT_PORT, help="0: any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--require-key",
        metavar="KEY",
        nargs="?",
        const=ANY_KEY,
        help=f"refuse requests whose {API_KEY_HEADER} is not KEY; without KEY, requests that have none",
    )
    parser.add_argument("--json", action="store_true", help="print each span as one line of JSON, and nothing else")
    arguments.add_page(parser, default_port=web.DEFAULT_PORT)


def run(args: argparse.Namespace) -> int:
    """Receive and print until SIGINT or SIGTERM.

    Returns:
        0, or 1 when an address cannot be listened on.
    """
    received = _Received(traces=None if args.web_port is None else Traces())

    def stop(number: int, _frame: FrameType | None) -> None:
        # Raising anywhere would tear a tree. A second signal does kill.
        signal.signal(number, signal.SIG_DFL)
        received.backlog.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with ExitStack() as stack:
        try:
            endpoint, page = _listen(args, received, stack)
        except _TakenError as error:
            complain(str(error))
            return 1
        output: Output = Lines() if args.json else Trees()
        greet(output, endpoint, page, args)
        _print_until_stopped(received.backlog, output)
        output.tell(str(received))
    return 0


class _TakenError(Exception):
    """An address cannot be had."""


def _listen(args: argparse.Namespace, received: _Received, stack: ExitStack) -> tuple[str, web.Web | None]:
    """Open the receiver, and the page when there is to be one, until the stack ends.

    Returns:
        Where applications send to, and the page.

    Raises:
        _TakenError: An address cannot be listened on.
    """
    receiver = Receiver(
        args.host,
        args.port,
        api_key=args.require_key or None,
        require_key=args.require_key is not None,
        on_spans=received.add_spans,
        on_request=received.add_request,
        keep=False,
    )
    try:
        stack.enter_context(receiver)
    except OSError as error:
        raise _TakenError(
            f"cannot listen on {args.host} port {args.port} ({error.strerror or error}): nothing is received. Stop "
            "what listens there, or type: mackerel-otel-server receive --port 0"
        ) from None
    # Where a key is asked for: the address to which one goes.
    host = addresses.reachable(args.host) if args.require_key is None else addresses.local(args.host)
    endpoint = addresses.url(host, receiver.port)
    if received.traces is None:
        return endpoint, None
    try:
        return endpoint, stack.enter_context(web.Web(received.traces, endpoint, args.web_port, key=_key(args)))
    except OSError as error:
        raise _TakenError(web.taken(error, args.web_port, "receive")) from None


def greet(output: Output, endpoint: str, page: web.Web | None, args: argparse.Namespace) -> None:
    """Say where it receives, and what to type there."""
    others = not is_loopback(urlsplit(endpoint).hostname or "")
    everywhere = " and every other address of this machine" if addresses.is_wildcard(args.host) else ""
    place = "another terminal, or on another machine" if others else "another terminal"
    output.tell(f"receiving on {endpoint}{everywhere}, Ctrl-C ends. In {place}:")
    variables = addresses.variables(endpoint, key=_key(args))
    output.tell(f"  {variables} gunicorn -c python:mackerel_otel_server.conf mysite.wsgi", "bold")
    if args.require_key is not None and (others or everywhere):
        output.tell(
            "Spans of other machines will be refused: over http their key goes to themselves only. To receive them, "
            "leave out --require-key",
            "yellow",
        )
    if page:
        output.tell(f"The latest traces in a browser on this machine: {page.url}")
    output.tell()


def _key(args: argparse.Namespace) -> str:
    return addresses.MADE_UP_KEY if args.require_key is None else "..."


def _print_until_stopped(backlog: Backlog, output: Output) -> None:
    while True:
        event = backlog.take(min(LONGEST_WAIT, max(0.0, output.due() - time.monotonic())))
        if event is None:
            break
        if isinstance(event, str):
            output.tell(event, "red")
        elif isinstance(event, LeftOut):
            output.print_due(float("inf"))
            output.tell(str(event), "yellow")
        else:
            output.add(event)
        output.print_due(time.monotonic())
        if reader_has_left():
            # Known before there is something to write: `receive | head -1` need not wait for a trace that never comes.
            raise BrokenPipeError
    output.print_due(float("inf"))


def _refusal(request: ReceivedRequest) -> str:
    line = f"refused {request.method} {one_line(request.path, 100)} with {request.status}: {request.message}"
    if request.message == "Invalid API Key":
        given = API_KEY_HEADER in request.headers
        line += f" ({'it is not the one of --require-key' if given else f'the request has no {API_KEY_HEADER}'})"
    return line
