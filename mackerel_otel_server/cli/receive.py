"""``mackerel-otel-server receive``: a far end for one's own machine that shows traces as trees, JSON or a page."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from mackerel_otel_server.cli import arguments
from mackerel_otel_server.cli.receiver import web
from mackerel_otel_server.cli.receiver.printing import Lines, Output, Trees
from mackerel_otel_server.cli.receiver.receiver import API_KEY_HEADER, ReceivedRequest, ReceivedSpan, Receiver
from mackerel_otel_server.cli.receiver.traces import Traces
from mackerel_otel_server.cli.text import complain, counted, one_line

if TYPE_CHECKING:
    import argparse
    from types import FrameType

DEFAULT_PORT = 4318
ANY_KEY = ""
# A signal that comes just before the main thread begins to wait, or that another thread takes, does not wake it up.
LONGEST_WAIT = 0.5

# None: a signal asks to stop.
_Event: TypeAlias = Sequence[ReceivedSpan] | ReceivedRequest | None


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
    events: SimpleQueue[_Event] = SimpleQueue()

    def stop(number: int, _frame: FrameType | None) -> None:
        # put() may be called from a signal handler, raising anywhere would tear a tree. A second signal does kill.
        signal.signal(number, signal.SIG_DFL)
        events.put(None)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with ExitStack() as stack:
        try:
            receiver, page = _listen(args, events, stack)
        except _TakenError as error:
            complain(str(error))
            return 1
        output: Output = Lines() if args.json else Trees()
        _greet(output, receiver.url, page, key=args.require_key)
        _print_until_stopped(events, output)
    return 0


class _TakenError(Exception):
    """An address cannot be had."""


def _listen(args: argparse.Namespace, events: SimpleQueue[_Event], stack: ExitStack) -> tuple[Receiver, web.Web | None]:
    """Open the receiver, and the page when there is to be one, until the stack ends.

    Raises:
        _TakenError: An address cannot be listened on.
    """
    traces = None if args.web_port is None else Traces()

    def on_spans(spans: Sequence[ReceivedSpan]) -> None:
        if traces:
            traces.add(spans)
        events.put(spans)

    receiver = Receiver(
        args.host,
        args.port,
        api_key=args.require_key or None,
        require_key=args.require_key is not None,
        on_spans=on_spans,
        on_request=events.put,
        keep=False,
    )
    try:
        stack.enter_context(receiver)
    except OSError as error:
        raise _TakenError(
            f"cannot listen on {args.host} port {args.port} ({error.strerror or error}): nothing is received. Stop "
            "what listens there, or type: mackerel-otel-server receive --port 0"
        ) from None
    if traces is None:
        return receiver, None
    try:
        return receiver, stack.enter_context(web.Web(traces, receiver.url, args.web_port))
    except OSError as error:
        raise _TakenError(web.taken(error, args.web_port, "receive")) from None


def _greet(output: Output, url: str, page: web.Web | None, *, key: str | None) -> None:
    output.tell(f"receiving on {url}, Ctrl-C ends. In another terminal:")
    variables = f"MACKEREL_OTEL_ENDPOINT={url} MACKEREL_APIKEY={'made-up' if key is None else '...'}"
    output.tell(f"  {variables} gunicorn -c python:mackerel_otel_server.conf mysite.wsgi", "bold")
    if page:
        output.tell(f"The latest traces in a browser on this machine: {page.url}")
    output.tell()


def _print_until_stopped(events: SimpleQueue[_Event], output: Output) -> None:
    spans = answered = refused = 0
    while True:
        event: _Event = ()
        with suppress(Empty):
            event = events.get(timeout=min(LONGEST_WAIT, max(0.0, output.due() - time.monotonic())))
        if event is None:
            break
        if isinstance(event, ReceivedRequest):
            if event.message:
                refused += 1
                output.tell(_refusal(event), "red")
            else:
                answered += 1
        else:
            spans += len(event)
            output.add(event)
        output.print_due(time.monotonic())
    output.print_due(float("inf"))
    output.tell(
        f"received {counted(spans, 'span')} in {counted(answered, 'request')}"
        + (f", refused {counted(refused, 'request')}" if refused else "")
    )


def _refusal(request: ReceivedRequest) -> str:
    line = f"refused {request.method} {one_line(request.path, 100)} with {request.status}: {request.message}"
    if request.message == "Invalid API Key":
        given = API_KEY_HEADER in request.headers
        line += f" ({'it is not the one of --require-key' if given else f'the request has no {API_KEY_HEADER}'})"
    return line
