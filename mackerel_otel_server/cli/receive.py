"""``mackerel-otel-server receive``: a far end for one's own machine that shows traces as trees, JSON or a page."""

from __future__ import annotations

import argparse
import secrets
import shlex
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mackerel_otel_server.cli.output import complain, is_file, reader_has_left
from mackerel_otel_server.cli.receiver import addresses, web
from mackerel_otel_server.cli.receiver.backlog import Backlog, LeftOut
from mackerel_otel_server.cli.receiver.endpoint import API_KEY_HEADER, INVALID_KEY, Receiver
from mackerel_otel_server.cli.receiver.limits import LONGEST_TEXT
from mackerel_otel_server.cli.receiver.printing import Lines, Trees
from mackerel_otel_server.cli.receiver.traces import Traces
from mackerel_otel_server.cli.text import counted, one_line
from mackerel_otel_server.settings.urls import is_loopback, leads_to_this_machine

if TYPE_CHECKING:
    from types import FrameType

    from mackerel_otel_server.cli.receiver.endpoint import ReceivedRequest

DEFAULT_PORT = 4318
# Seconds. A signal does not wake up the main thread if it comes just before that waits, or if another thread gets it.
LONGEST_WAIT = 0.5


@dataclass(frozen=True)
class Key:
    """What senders are asked for."""

    required: str | None = None
    """The key; empty: any; None: none is needed."""
    shown: str = addresses.MADE_UP_KEY
    """What stands for the key in a command that is to be typed."""


@dataclass
class _Received:
    """What comes in: counted here, printed later; ``wrong_key`` says which key was expected."""

    wrong_key: str = ""
    backlog: Backlog = field(default_factory=Backlog)
    traces: Traces | None = None
    spans: int = 0
    answered: int = 0
    refused: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, request: ReceivedRequest) -> None:
        with self.lock:
            self.spans += len(request.spans)
            self.refused += bool(request.message)
            self.answered += not request.message
        if request.spans:
            if self.traces:
                self.traces.add(request.spans)
            self.backlog.add(request.spans)
        if request.message:
            path = one_line(request.path, 100)
            line = f"refused {request.method} {path} with {request.status}: {request.message}"
            if request.message == INVALID_KEY:
                has_key = request.headers.get(API_KEY_HEADER, "").strip()
                line += f" ({self.wrong_key if has_key else f'the request has no {API_KEY_HEADER}'})"
            self.backlog.add(line)

    def __str__(self) -> str:
        with self.lock:
            refused = f", refused {counted(self.refused, 'request')}" if self.refused else ""
            return f"received {counted(self.spans, 'span')} in {counted(self.answered, 'request')}{refused}"


def _key(text: str) -> str:
    """Understand an API key, or raise ArgumentTypeError: it is empty, as a shell's variable that is not set is."""
    if text:
        return text
    raise argparse.ArgumentTypeError("the key is empty: type it, or leave KEY out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``receive`` understands."""
    parser.add_argument(
        "--host",
        type=addresses.understood,
        default=addresses.LOOPBACK,
        help="address to listen on; where other machines reach it, a key is asked for (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=addresses.port, default=DEFAULT_PORT, help="0: any free one (default: %(default)s)"
    )
    keys = parser.add_mutually_exclusive_group()
    keys.add_argument(
        "--require-key",
        metavar="KEY",
        nargs="?",
        type=_key,
        const=True,
        help=f"refuse requests whose {API_KEY_HEADER} is not KEY; without KEY, requests that have none, or where other "
        "machines reach --host, those without the key that is made up",
    )
    keys.add_argument(
        "--no-key", action="store_true", help="take spans from everybody, also from other machines that reach --host"
    )
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"show all of every text, for senders that you trust; else what exceeds {LONGEST_TEXT} characters, or the "
        "size of its request too far, is cut and says so",
    )
    parser.add_argument("--json", action="store_true", help="print each span as one line of JSON, and nothing else")
    web.add_arguments(parser, default_port=web.DEFAULT_PORT)


def run(args: argparse.Namespace) -> int:
    """Receive and print until SIGINT or SIGTERM, and return 0, or 1 when an address cannot be listened on."""
    key = key_of(args)
    received = _Received(
        wrong_key=f"it is not the one {'of --require-key' if isinstance(args.require_key, str) else 'shown above'}",
        traces=None if args.web_port is None else Traces(),
    )

    def stop(number: int, _frame: FrameType | None) -> None:
        # An exception, raised wherever the program is, would leave half a tree. A second signal does kill.
        signal.signal(number, signal.SIG_DFL)
        received.backlog.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    receiver = page = None
    with ExitStack() as stack:
        try:
            receiver = stack.enter_context(
                Receiver(
                    args.host,
                    args.port,
                    api_key=key.required,
                    on_request=received.add,
                    keep=False,
                    longest_text=None if args.full else LONGEST_TEXT,
                )
            )
            endpoint = addresses.url(host_of(args, key), receiver.port)
            if received.traces is not None:
                shown = endpoint if _leads_to(endpoint, key) else ""
                page = stack.enter_context(web.Web(received.traces, shown, args.web_port, key=key.shown))
        except OSError as error:
            told = "nothing is received. Stop what listens there, or type: mackerel-otel-server receive --port 0"
            complain(f"{error.strerror}: {f'{web.TAKEN} receive --web-port 0' if receiver else told}")
            return 1
        printer = Lines() if args.json else Trees(full=args.full)
        greet(printer, endpoint, page, key, args)
        _print_until_stopped(received.backlog, printer)
        printer.tell(str(received))
    return 0


def key_of(args: argparse.Namespace) -> Key:
    """Return the key that senders are asked for: the typed one, or a new one where other machines reach this one."""
    if isinstance(args.require_key, str):
        return Key(args.require_key, "...")
    if is_loopback(args.host):
        return Key("", "...") if args.require_key else Key()
    if args.no_key:
        return Key()
    made = secrets.token_urlsafe(33)  # 44 characters, as Mackerel's have
    return Key(made, made)


def host_of(args: argparse.Namespace, key: Key) -> str:
    """Return the address to be shown: this machine's own when a key is asked for, as no key is sent elsewhere."""
    return addresses.reachable(args.host) if key.required is None else addresses.local(args.host)


def _leads_to(endpoint: str, key: Key) -> bool:
    """Return whether this package sends to the endpoint: it sends no key over http but to a loopback address."""
    return key.required is None or leads_to_this_machine(endpoint)


def greet(printer: Trees | Lines, endpoint: str, page: web.Web | None, key: Key, args: argparse.Namespace) -> None:
    """Say where it receives, and what to type there."""
    others = not leads_to_this_machine(endpoint)
    everywhere = " and every other address of this machine" if args.host in addresses.WILDCARDS else ""
    place = "another terminal, or on another machine" if others else "another terminal"
    leads = _leads_to(endpoint, key)
    printer.tell(f"receiving on {endpoint}{everywhere}, Ctrl-C ends.{f' In {place}:' if leads else ''}")
    if leads:
        variables = addresses.variables(endpoint, key=key.shown)
        printer.tell(f"  {variables} gunicorn -c python:mackerel_otel_server.conf mysite.wsgi", "bold")
    if key.required is not None and (others or everywhere):
        printer.tell(f"Requests need the header {API_KEY_HEADER}: {key.shown}", "yellow")
        printer.tell(
            "This package sends a key over http to its own machine only. For spans of other machines, let a proxy with "
            "TLS pass them on, or take everybody's without a key. Type:",
            "yellow",
        )
        port = [] if args.port == DEFAULT_PORT else ["--port", str(args.port)]
        command = shlex.join(["mackerel-otel-server", "receive", "--host", args.host, *port, "--no-key"])
        printer.tell(f"  {command}", "bold")
    if page:
        printer.tell(f"The latest traces in a browser on this machine: {page.url}")
    printer.tell()


def _print_until_stopped(backlog: Backlog, printer: Trees | Lines) -> None:
    while True:
        event = backlog.take(min(LONGEST_WAIT, max(0.0, printer.due() - time.monotonic())))
        if event is None:
            break
        if isinstance(event, str):
            printer.tell(event, "red")
        elif isinstance(event, LeftOut):
            printer.print_due(float("inf"))
            printer.tell(event.words(is_file=is_file()), "yellow")
        else:
            printer.add(event)
        printer.print_due(time.monotonic())
        if reader_has_left():
            # So `receive | head -1` ends although no trace comes whose writing would fail.
            raise BrokenPipeError
    printer.print_due(float("inf"))
