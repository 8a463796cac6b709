"""``mackerel-otel-server demo``: two real workers, real requests, and their traces, all on this machine."""

from __future__ import annotations

import http.client
import signal
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mackerel_otel_server.cli import arguments, demo_server
from mackerel_otel_server.cli.child import Child
from mackerel_otel_server.cli.demo_requests import UnansweredError, ask
from mackerel_otel_server.cli.receiver import web
from mackerel_otel_server.cli.receiver.attributes import first
from mackerel_otel_server.cli.receiver.receiver import ReceivedSpan, Receiver
from mackerel_otel_server.cli.receiver.traces import Traces
from mackerel_otel_server.cli.receiver.tree import show
from mackerel_otel_server.cli.style import paint
from mackerel_otel_server.cli.text import complain, counted, printable, say
from mackerel_otel_server.cli.watch import TICK, Watch

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

API_KEY = "made-up-key-of-the-demo"
WORKERS = 2
START_SECONDS = 30.0
SPANS_SECONDS = 15.0


class FailedError(Exception):
    """The demo cannot go on; the text says why and what to type."""


@dataclass(frozen=True)
class Result:
    """What was asked, what came back."""

    answered: int
    pids: set[int]
    spans: list[ReceivedSpan]

    def missing(self) -> int:
        """Return how many answered requests have no server span."""
        return self.answered - sum(span.kind == "SERVER" for span in self.spans)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``demo`` understands."""
    parser.add_argument("--server", choices=demo_server.SERVERS, default="gunicorn", help="default: %(default)s")
    arguments.add_page(parser, default_port=0)


def run(args: argparse.Namespace) -> int:
    """Run the demo.

    Returns:
        0 when every request's span was received, 130 after Ctrl-C, 143 after TERM, 129 after HUP, otherwise 1. With
        a page, which stays until a signal comes, that signal changes nothing.
    """
    if args.web_port is None:
        return _run(args.server, None)
    page = web.Web(Traces(), "", args.web_port)
    try:
        page.__enter__()
    except OSError as error:
        complain(web.taken(error, args.web_port, "demo"))
        return 1
    try:
        return _run(args.server, page)
    finally:
        page.__exit__(None, None, None)


def _run(server: str, page: web.Web | None) -> int:
    watch = Watch()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup asks for
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, watch.note) for number in numbers}
    try:
        if page:
            say(f"The traces in a browser on this machine: {page.url}")
        result = _serve_and_ask(server, watch, page)
    except FailedError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted; the server has been stopped")
        return 128 + watch.signals[0]
    except BrokenPipeError:
        raise
    except OSError as error:
        complain(f"the demo cannot start its server ({error}): nothing was traced")
        return 1
    if page is None:
        # The server is gone: from here on a signal may end the demo as usual.
        for number, handler in before.items():
            signal.signal(number, handler)
    _print_traces(result)
    status = _conclude(server, result)
    if page:
        say()
        say(f"The traces stay at {page.url} until Ctrl-C")
        watch.until_signal()
    return status


def _serve_and_ask(server: str, watch: Watch, page: web.Web | None) -> Result:
    on_spans = page.traces.add if page else None
    with (
        Receiver(api_key=API_KEY, on_spans=on_spans) as receiver,
        tempfile.TemporaryDirectory(prefix="mackerel-demo-") as folder,
    ):
        port = demo_server.free_port()
        try:
            command = demo_server.command(server, port, WORKERS)
        except LookupError as error:
            raise FailedError(str(error.args[0])) from None
        say(f"Starting {demo_server.SERVERS[server].name} with {WORKERS} workers at http://127.0.0.1:{port}/")
        # An empty directory: no gunicorn.conf.py of somebody else, no module that shadows an installed one.
        with Child(command, env=demo_server.environment(receiver.url, API_KEY, folder), cwd=folder) as child:
            try:
                _wait_until_up(child, port, watch)
                answered, pids = ask(port, WORKERS, watch)
                watch.until(lambda: _server_spans(receiver, answered), SPANS_SECONDS, "waiting for the spans")
            except UnansweredError as error:
                child.stop()
                # Ctrl-C also reaches a server that has not left the demo's process group yet: then that is the reason.
                watch.check()
                _print_log(child.lines)
                raise FailedError(f"{error}: the server's log above says why") from None
            # Before the log is printed: what the workers say when they leave belongs to it.
            child.stop()
            watch.check()
            _print_log(demo_server.interesting(server, child.lines))
        refused = [request.message for request in receiver.requests if request.status != http.client.OK]
        if refused:
            say(f"The receiver refused {counted(len(refused), 'request')}: {refused[-1]}")
        return Result(answered, pids, receiver.spans)


def _server_spans(receiver: Receiver, number: int) -> bool:
    return receiver.wait_for(lambda r: sum(span.kind == "SERVER" for span in r.spans) >= number, TICK)


def _wait_until_up(child: Child, port: int, watch: Watch) -> None:
    def up_or_gone() -> bool:
        time.sleep(TICK)
        return not child.running() or demo_server.listens(port)

    if not watch.until(up_or_gone, START_SECONDS, "waiting for the server"):
        raise UnansweredError(f"the server did not listen within {START_SECONDS:.0f} s")
    if not child.running():
        raise UnansweredError("the server did not come up")


def _print_log(lines: Iterable[str]) -> None:
    say()
    say("The server's log:")
    for line in lines:
        say(f"  | {printable(line)}")
    say()


def _print_traces(result: Result) -> None:
    workers: dict[str, list[ReceivedSpan]] = {}
    for span in result.spans:
        workers.setdefault(first(span.resource, "process.pid"), []).append(span)
    for pid, spans in sorted(workers.items()):
        traces = len({span.trace_id for span in spans})
        say(paint(f"Worker {printable(pid)}: {counted(len(spans), 'span')} in {counted(traces, 'trace')}", "bold"))
        say()
        show(spans, indent="  ")


def _conclude(server: str, result: Result) -> int:
    spans = counted(len(result.spans), "span")
    say(f"{counted(len(result.pids), 'worker')} answered {counted(result.answered, 'request')}; {spans} arrived here.")
    if result.missing() > 0:
        complain(
            f"{counted(result.missing(), 'request')} answered, but no span arrived: the traces above are not complete. "
            "The server's log above says why"
        )
        return 1
    if len(result.pids) < WORKERS:
        complain(f"only one of {WORKERS} workers answered; type the command again")
        return 1
    say("Nothing has left this machine. To see your own application in Mackerel:")
    say("  export MACKEREL_APIKEY=...        (a Mackerel API key with write permission)")
    say(f"  {demo_server.SERVERS[server].start}")
    return 0
