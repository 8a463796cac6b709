"""``mackerel-otel-server demo``: two real workers, real requests, and their traces, all on this machine."""

from __future__ import annotations

import http.client
import secrets
import signal
import tempfile
import time
from typing import TYPE_CHECKING

from mackerel_otel_server.cli import demo_server
from mackerel_otel_server.cli.demo_requests import TICK, Watch, ask
from mackerel_otel_server.cli.demo_server import FailedError
from mackerel_otel_server.cli.output import complain, paint, say
from mackerel_otel_server.cli.process_group import Child
from mackerel_otel_server.cli.receiver import web
from mackerel_otel_server.cli.receiver.attributes_as_text import first
from mackerel_otel_server.cli.receiver.endpoint import Receiver
from mackerel_otel_server.cli.receiver.limits import LONGEST_TEXT
from mackerel_otel_server.cli.receiver.traces import Traces
from mackerel_otel_server.cli.receiver.tree import show
from mackerel_otel_server.cli.text import counted, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from mackerel_otel_server.cli.receiver.received_spans import ReceivedSpan

WORKERS = 2
START_SECONDS = 30.0
SPANS_SECONDS = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``demo`` understands."""
    parser.add_argument("--server", choices=demo_server.SERVERS, default="gunicorn", help="default: %(default)s")
    web.add_arguments(parser, default_port=0)


def run(args: argparse.Namespace) -> int:
    """Run the demo, and return 0 when every request's span was received, otherwise 1.

    It is 130 after Ctrl-C, 143 after TERM, 129 after HUP. A signal that ends the page at last changes nothing.
    """
    if args.web_port is None:
        return _run(args.server, None)
    try:
        page = web.Web(Traces(), "", args.web_port)
    except OSError as error:
        complain(f"{error.strerror}: {web.TAKEN} demo --web-port 0")
        return 1
    with page:
        return _run(args.server, page)


def _run(server: str, page: web.Web | None) -> int:
    watch = Watch()
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup asks for
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, watch.note) for number in numbers}
    try:
        if page:
            say(f"The traces in a browser on this machine: {page.url}")
        answered, pids, spans = _serve_and_ask(server, watch, page)
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
    _print_traces(spans)
    status = _conclude(server, answered, pids, spans)
    if page:
        say()
        say(f"The traces stay at {page.url} until Ctrl-C")
        watch.until_signal()
    return status


def _serve_and_ask(server: str, watch: Watch, page: web.Web | None) -> tuple[int, set[int], list[ReceivedSpan]]:
    """Return how many requests were answered, by which workers, and the spans that arrived."""
    # A key of its own: nobody else's spans are among those of the demo.
    api_key = secrets.token_urlsafe()
    on_request = (lambda request: page.traces.add(request.spans)) if page else None
    with (
        Receiver(api_key=api_key, on_request=on_request, longest_text=LONGEST_TEXT) as receiver,
        tempfile.TemporaryDirectory(prefix="mackerel-demo-") as folder,
    ):
        port = demo_server.free_port()
        command = demo_server.command(server, port, WORKERS)
        say(f"Starting {demo_server.SERVERS[server].name} with {WORKERS} workers at http://127.0.0.1:{port}/")
        # An empty directory: no gunicorn.conf.py of somebody else, no module that shadows an installed one.
        with Child(command, env=demo_server.environment(receiver.url, api_key, folder), cwd=folder) as child:
            try:
                _wait_until_up(child, port, watch)
                answered, pids = ask(port, WORKERS, watch)
                watch.until(lambda: _has_server_spans(receiver, answered), SPANS_SECONDS, "waiting for the spans")
            except FailedError as error:
                child.stop()
                # Ctrl-C also reaches a server that has not left the demo's process group yet: then that is the reason.
                watch.check()
                _print_log(child.lines)
                raise FailedError(f"{error}: the server's log above says why") from None
            # The log is printed after this, because what the workers say when they leave belongs to it.
            child.stop()
            watch.check()
            _print_log(demo_server.interesting(server, child.lines))
        refused = [request.message for request in receiver.requests if request.status != http.client.OK]
        if refused:
            say(f"The receiver refused {counted(len(refused), 'request')}: {refused[-1]}")
        return answered, pids, receiver.spans


def _has_server_spans(receiver: Receiver, number: int) -> bool:
    return receiver.wait_for(lambda r: sum(span.kind == "SERVER" for span in r.spans) >= number, TICK)


def _wait_until_up(child: Child, port: int, watch: Watch) -> None:
    def up_or_gone() -> bool:
        time.sleep(TICK)
        return not child.running() or demo_server.listens(port)

    if not watch.until(up_or_gone, START_SECONDS, "waiting for the server"):
        raise FailedError(f"the server did not listen within {START_SECONDS:.0f} s")
    if not child.running():
        raise FailedError("the server did not come up")


def _print_log(lines: Iterable[str]) -> None:
    for line in ("", "The server's log:", *(f"  | {printable(line)}" for line in lines), ""):
        say(line)


def _print_traces(received: Iterable[ReceivedSpan]) -> None:
    workers: dict[str, list[ReceivedSpan]] = {}
    for span in received:
        workers.setdefault(first(span.resource, "process.pid"), []).append(span)
    for pid, spans in sorted(workers.items()):
        traces = len({span.trace_id for span in spans})
        say(paint(f"Worker {printable(pid)}: {counted(len(spans), 'span')} in {counted(traces, 'trace')}", "bold"))
        say()
        show(spans, indent="  ")


def _conclude(server: str, answered: int, pids: set[int], spans: list[ReceivedSpan]) -> int:
    arrived = counted(len(spans), "span")
    say(f"{counted(len(pids), 'worker')} answered {counted(answered, 'request')}; {arrived} arrived here.")
    missing = answered - sum(span.kind == "SERVER" for span in spans)
    if missing > 0:
        complain(
            f"{counted(missing, 'request')} answered, but no span arrived: the traces above are not complete. "
            "The server's log above says why"
        )
        return 1
    if len(pids) < WORKERS:
        complain(f"only one of {WORKERS} workers answered; type the command again")
        return 1
    say("Nothing has left this machine. To see your own application in Mackerel:")
    say("  export MACKEREL_APIKEY=...        (a Mackerel API key with write permission)")
    say(f"  {demo_server.SERVERS[server].start}")
    return 0
