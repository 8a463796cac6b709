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

from mackerel_otel_server.cli.receiver.addresses import LOOPBACK, MADE_UP_KEY, variables
from mackerel_otel_server.cli.receiver.attributes import visible
from mackerel_otel_server.cli.receiver.http_server import Answer, RefusedError, Request, Server
from mackerel_otel_server.cli.receiver.summary import detail, summarise

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from mackerel_otel_server.cli.receiver.traces import Traces

HOST = LOOPBACK
DEFAULT_PORT = 4319
# An answer without news after that long keeps connections from looking dead.
POLL_SECONDS = 25.0
_MOST_BODY = 1000
_IDLE_SECONDS = 60.0

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Another site's page that has given its own name the address 127.0.0.1 (DNS rebinding) still sends that name.
_LOOPBACK = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)


def taken(error: OSError, port: int, command: str) -> str:
    """Say that the page cannot be served.

    Args:
        error: Why.
        port: On which port.
        command: The sub-command that was typed.
    """
    return (
        f"cannot listen on {HOST} port {port} ({error.strerror or error}): there is no page, and nothing is received. "
        f"Stop what listens there, or type: mackerel-otel-server {command} --web-port 0"
    )


class Web:
    """Serve the page while the ``with`` block runs.

    Args:
        traces: What it shows.
        endpoint: Where an application may send its own; empty: nowhere.
        port: Port to listen on, 0 for any free one.
        key: What stands for the API key in the command that the page shows.
    """

    def __init__(self, traces: Traces, endpoint: str, port: int = 0, *, key: str = MADE_UP_KEY) -> None:
        """Remember the arguments; nothing is bound yet."""
        self.traces = traces
        self._endpoint = endpoint
        self._variables = variables(endpoint, key=key)
        self._port = port
        self._server: Server | None = None

    def __enter__(self) -> Self:
        """Bind and serve.

        Raises:
            OSError: The address cannot be had, e.g. because the port is taken.
        """
        self._server = Server(HOST, self._port, self._answer, max_body=_MOST_BODY, idle_timeout=_IDLE_SECONDS)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.1,), name="web", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop serving and close every connection."""
        self.traces.close()
        if self._server:
            self._server.stop()

    @property
    def url(self) -> str:
        """What is opened in a browser."""
        return f"http://{HOST}:{self._port}/"

    def _answer(self, request: Request) -> Answer:
        try:
            return self._serve(request)
        except RefusedError as refused:
            text = f"{refused.message}\n".encode()
            headers = {"Allow": "GET, HEAD"} if refused.status == 405 else {}  # noqa: PLR2004
            return Answer(refused.status, _HEADERS | headers | {"Content-Type": "text/plain; charset=utf-8"}, text)

    def _serve(self, request: Request) -> Answer:
        if request.unreadable:
            raise request.unreadable
        _check_origin(request)
        if request.method not in {"GET", "HEAD"}:
            raise RefusedError(405, "only GET is served")
        path, _, query = request.path.partition("?")
        if path == "/":
            return _page()
        # A page of another site may lead here, but no more. https://www.w3.org/TR/fetch-metadata/
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}:
            raise RefusedError(403, "only this page itself may ask for traces")
        if path == "/traces":
            return self._news(parse_qs(query))
        if path.startswith("/traces/"):
            trace = self.traces.get(path.removeprefix("/traces/"))
            if trace:
                return _json(summarise(trace) | detail(trace))
        raise RefusedError(404, "not found")

    def _news(self, query: dict[str, list[str]]) -> Answer:
        after = query.get("after", ["0"])[0]
        known = query.get("store", [""])[0] == self.traces.store and re.fullmatch("[0-9]{1,15}", after)
        news = self.traces.news(int(after) if known else -1, POLL_SECONDS)
        return _json(
            {
                "store": news.store,
                "version": news.version,
                "oldest": news.oldest,
                "endpoint": self._endpoint,
                "variables": self._variables,
                "traces": [summarise(trace) for trace in news.traces],
            }
        )


def _check_origin(request: Request) -> None:
    host = request.headers.get("Host", "").strip()
    if not _LOOPBACK.fullmatch(host):
        raise RefusedError(403, f"the page is for this machine: open it as http://{HOST}, not by another name")
    origin = request.headers.get("Origin")
    if origin is not None and origin != f"http://{host}":
        raise RefusedError(403, "only this page itself may ask for traces")


def _json(value: Any) -> Answer:
    return Answer(200, _HEADERS | {"Content-Type": "application/json"}, json.dumps(visible(value)).encode())


@cache
def _page() -> Answer:
    page = (files("mackerel_otel_server.cli.receiver") / "page.html").read_bytes()
    # Only what stands in the file runs: nothing that a span carries can become a script or a style.
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {_hash(page, b'script')}",
            f"style-src {_hash(page, b'style')}",
            "img-src data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    headers = {"Content-Type": "text/html; charset=utf-8", "Content-Security-Policy": policy}
    return Answer(200, _HEADERS | headers, page)


def _hash(page: bytes, tag: bytes) -> str:
    """Return the source expression for an inline element: https://www.w3.org/TR/CSP3/#external-hash."""
    start = page.index(b"<%s>" % tag) + len(tag) + 2
    digest = hashlib.sha256(page[start : page.index(b"</%s>" % tag)]).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
