"""The page that shows traces while they arrive, for browsers on this machine only."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from mackerel_otel_server.cli.receiver import addresses
from mackerel_otel_server.cli.receiver.attributes_as_text import visible
from mackerel_otel_server.cli.receiver.http_server import HttpRequest, RefusedError, Reply, Server
from mackerel_otel_server.cli.receiver.summary import detail, summarise

if TYPE_CHECKING:
    import argparse

    from mackerel_otel_server.cli.receiver.traces import Traces

HOST = addresses.LOOPBACK
DEFAULT_PORT = 4319
TAKEN = "there is no page, and nothing is received. Stop what listens there, or type: mackerel-otel-server"
# Seconds after which there is an answer although nothing is new, so that no connection looks dead.
POLL_SECONDS = 25.0
# A request for news is answered at once while so many others wait for news.
_MOST_WAITING = 16

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# The names of this machine. Another site whose name leads to 127.0.0.1 (DNS rebinding) still sends its own name.
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)

_ONLY_THIS_PAGE = "only this page itself may ask for traces"


def add_arguments(parser: argparse.ArgumentParser, *, default_port: int) -> None:
    """Add ``--web`` and ``--web-port``, which stands for both."""
    parser.add_argument(
        "--web",
        dest="web_port",
        action="store_const",
        const=default_port,
        help="show the latest traces on a page, for browsers on this machine",
    )
    usual = f"default: {default_port}" if default_port else "default: any free one"
    parser.add_argument(
        "--web-port", type=addresses.port, metavar="PORT", help=f"--web on this port, 0: any free one ({usual})"
    )


class Web(Server):
    """Serve the page while the ``with`` block runs.

    Args:
        traces: What it shows.
        endpoint: Where an application may send its own; empty: nowhere.
        port: Port to listen on, 0 for any free one.
        key: What stands for the API key in the command that the page shows.
    """

    max_body = 1000
    # A browser opens six. Each may have an answer of megabytes under way, which its client need not read.
    most_connections = 32

    def __init__(self, traces: Traces, endpoint: str, port: int = 0, *, key: str = addresses.MADE_UP_KEY) -> None:
        self.traces = traces
        self._endpoint = endpoint
        self._variables = addresses.variables(endpoint, key=key)
        # Answers are made one after the other, as one may need many times its size meanwhile.
        self._making = threading.Lock()
        self._places = threading.Semaphore(_MOST_WAITING)
        super().__init__(HOST, port)

    def __exit__(self, *raised: object) -> None:
        """Stop serving and close every connection."""
        self.traces.close()
        super().__exit__(*raised)

    @property
    def url(self) -> str:
        """What is opened in a browser."""
        return f"http://{HOST}:{self.port}/"

    def check(self, request: HttpRequest) -> None:
        """Refuse what another site's page asks for."""
        host = request.headers.get("Host", "").strip()
        if not _LOOPBACK.fullmatch(host):
            raise RefusedError(403, f"the page is for this machine: open it as http://{HOST}, not by another name")
        if request.headers.get("Origin", f"http://{host}") != f"http://{host}":
            raise RefusedError(403, _ONLY_THIS_PAGE)

    def answer(self, request: HttpRequest) -> Reply:
        """Answer with the page, with news of traces, or with one trace."""
        try:
            return self._serve(request)
        except RefusedError as refused:
            text = f"{refused.message}\n".encode()
            headers = {"Allow": "GET, HEAD"} if refused.status == 405 else {}  # noqa: PLR2004
            return Reply(refused.status, _HEADERS | headers | {"Content-Type": "text/plain; charset=utf-8"}, text)

    def _serve(self, request: HttpRequest) -> Reply:
        if request.refused:
            raise request.refused
        if request.method not in {"GET", "HEAD"}:
            raise RefusedError(405, "only GET is served")
        path, _, query = request.path.partition("?")
        if path == "/":
            return _page()
        # A page of another site may lead here, but no more. https://www.w3.org/TR/fetch-metadata/
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            raise RefusedError(403, _ONLY_THIS_PAGE)
        if path == "/traces":
            return self._news(parse_qs(query))
        if path.startswith("/traces/") and (trace := self.traces.get(path.removeprefix("/traces/"))):
            with self._making:
                return _json(summarise(trace) | detail(trace))
        raise RefusedError(404, "not found")

    def _news(self, query: dict[str, list[str]]) -> Reply:
        after = query.get("after", ["0"])[0]
        known = query.get("store", [""])[0] == self.traces.store and re.fullmatch("[0-9]{1,15}", after)
        waits = self._places.acquire(blocking=False)
        try:
            news = self.traces.news(int(after) if known else -1, POLL_SECONDS if waits else 0.0)
        finally:
            if waits:
                self._places.release()
        told = {"store": self.traces.store, "version": news.version, "oldest": news.oldest}
        told |= {"endpoint": self._endpoint, "variables": self._variables}
        with self._making:
            return _json(told | {"traces": [summarise(trace) for trace in news.traces]})


def _json(value: Any) -> Reply:
    return Reply(200, _HEADERS | {"Content-Type": "application/json"}, json.dumps(visible(value)).encode())


@cache
def _page() -> Reply:
    page = (files("mackerel_otel_server.cli.receiver") / "page.html").read_bytes()
    # Only what stands in the file runs: nothing that a span carries can become a script or a style.
    policy = (
        f"default-src 'none'; script-src {_hash(page, b'script')}; style-src {_hash(page, b'style')}; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
    return Reply(200, _HEADERS | headers, page)


def _hash(page: bytes, tag: bytes) -> str:
    """Return the source expression for an inline element: https://www.w3.org/TR/CSP3/#external-hash."""
    start = page.index(b"<%s>" % tag) + len(tag) + 2
    digest = hashlib.sha256(page[start : page.index(b"</%s>" % tag)]).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
