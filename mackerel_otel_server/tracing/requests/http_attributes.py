"""The attributes of a request and its response after the semantic conventions, for WSGI and ASGI alike.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/#http-server-span
"""

from __future__ import annotations

import functools
import re
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from mackerel_otel_server.settings.http_options import SECRET_HEADERS, named_headers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.trace import Span

    from mackerel_otel_server.settings.http_options import HttpOptions

# The first release whose HTTP conventions are stable.
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.23.1"

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_LONGEST_METHOD: Final = 64
LONGEST_ADDRESS: Final = 255
"""Characters of a host, an address, a scheme, a version or a header's name. Genuine ones are shorter."""
LONGEST_TEXT: Final = 2048
"""Characters of a path, a query or a header's value. A request may have megabytes of them, and spans wait in memory."""
_MOST_HEADERS: Final = 48
"""Captured headers of a request, and of its response. The SDK keeps 128 attributes of a span. If a span gets more, the
SDK drops the first ones, such as the method, and writes a line into the log for each."""
SWITCHING_PROTOCOLS: Final = 101
SERVER_ERROR: Final = 500
"""From here on, a status code means an error of the server; 4xx are errors of the client."""
_SAFE: Final = "".join(map(chr, range(0x21, 0x7F)))
_VERSIONS: Final = {"HTTP/1.1": "1.1", "HTTP/2.0": "2", "HTTP/3.0": "3"}
# https://opentelemetry.io/docs/specs/semconv/registry/attributes/url/#url-query
_SECRET_KEYS: Final = (
    *("AWSAccessKeyId", "Signature", "sig", "X-Amz-Credential", "X-Amz-Security-Token", "X-Amz-Signature"),
    "X-Goog-Signature",
)
_ANY_FORM: Final = {
    character: f"(?:{re.escape(character)}|%{ord(character.lower()):02x}|%{ord(character.upper()):02x})"
    for character in "".join(_SECRET_KEYS)
}
"""Each character in all its forms: applications decode the names of parameters, and some ignore their case."""
_SECRETS: Final = re.compile(
    rf"(?:(?<=[?&;])|^)({'|'.join(''.join(map(_ANY_FORM.__getitem__, key)) for key in _SECRET_KEYS)})=[^&;]*",
    re.IGNORECASE,
)


def _redacted(found: re.Match[str]) -> str:
    # A function, because re would look for a template's parsed form each time, by a hash of all that the pattern has.
    return f"{found[1]}=REDACTED"


def request_attributes(  # noqa: C901, PLR0913 - a request has so many parts
    options: HttpOptions,
    *,
    method: str,
    scheme: str,
    path: str,
    query: str,
    host: str,
    is_unix: bool,
    client: str,
    version: str,
    user_agent: str,
) -> tuple[str, dict[str, Any]]:
    """Return the method for the span's name, and the attributes that are known when a request begins.

    Texts that come from the client are cut.

    Args:
        options: What the operator chose.
        method: As the client sent it.
        scheme: As the server has determined it, because the server knows its proxies.
        path: Without a query, as percent-encoded by the client.
        query: The part after the question mark.
        host: The Host header, or the server's own ``name:port``, or empty.
        is_unix: Whether the server listens on a Unix domain socket, where a scheme means no port.
        client: The client's address, as the server has determined it.
        version: ``1.1``.
        user_agent: The User-Agent header.
    """
    known = method in options.known_methods
    name = method if known else "HTTP"
    if len(path) + len(query) + len(user_agent) + len(host) + len(client) + len(scheme + version) > LONGEST_ADDRESS:
        path, query, user_agent = path[:LONGEST_TEXT], query[:LONGEST_TEXT], user_agent[:LONGEST_TEXT]
        host, client = host[:LONGEST_ADDRESS], client[:LONGEST_ADDRESS]
        scheme, version = scheme[:LONGEST_ADDRESS], version[:LONGEST_ADDRESS]
    address, port = _split_host(host, "" if is_unix else scheme)
    if query:
        query = _SECRETS.sub(_redacted, query)
    if options.new_names:
        attributes: dict[str, Any] = {
            "http.request.method": method if known else "_OTHER",
            "url.scheme": scheme,
            "url.path": path,
            "network.protocol.version": version,
        }
        if address:
            attributes["server.address"] = address
        if port and address:
            attributes["server.port"] = port
        if query:
            attributes["url.query"] = query
        if client:
            attributes["client.address"] = client
        if user_agent:
            attributes["user_agent.original"] = user_agent
        if not known:
            attributes["http.request.method_original"] = method[:_LONGEST_METHOD]
    else:
        attributes = {}
    if options.old_names:
        attributes |= {
            "http.method": method if known else "_OTHER",
            "http.scheme": scheme,
            "http.target": f"{path}?{query}" if query else path,
            "http.flavor": version,
        }
        optional = {
            "http.host": host,
            "net.host.name": address,
            "net.host.port": port if address else 0,
            "net.peer.ip": client,
            "http.user_agent": user_agent,
        }
        attributes |= {key: value for key, value in optional.items() if value}
    return name, attributes


def path_of(target: str) -> str:
    """Return the path of a request target, without query and fragment.

    https://www.rfc-editor.org/rfc/rfc9112#section-3.2
    """
    path = target.partition("?")[0].partition("#")[0]
    if not path.startswith("/") and "://" in path:
        # The absolute form, which clients send to proxies.
        path = f"/{path.partition('://')[2].partition('/')[2]}"
    return path


def quoted(text: str) -> str:
    """Percent-encode what a client should have encoded itself. Each character of ``text`` is one byte."""
    return text if text.isascii() else quote(text[:LONGEST_TEXT], safe=_SAFE, encoding="latin-1", errors="replace")


def set_status_attributes(options: HttpOptions, span: Span, status: int) -> None:
    """Set the attributes that follow from a response's status code."""
    if options.new_names:
        span.set_attribute("http.response.status_code", status)
        if status >= SERVER_ERROR:
            span.set_attribute("error.type", str(status))
    if options.old_names:
        span.set_attribute("http.status_code", status)


def version_of(protocol: str) -> str:
    """Return ``1.1`` for ``HTTP/1.1``, and ``2`` for the ``HTTP/2.0`` that Gunicorn has."""
    return _VERSIONS.get(protocol) or protocol.rpartition("/")[2]


def header_attributes(
    options: HttpOptions, kind: str, wanted: re.Pattern[str] | None, headers: Iterable[tuple[str, str]]
) -> dict[str, list[str]]:
    """Return the captured headers as attributes with the names that OpenTelemetry Python gives them.

    Headers that hold credentials are redacted unless the operator has typed their full names: a pattern such as ``.*``
    is not meant for them.

    Args:
        options: What the operator chose.
        kind: ``request`` or ``response``.
        wanted: Matches the names of those that become attributes.
        headers: Name, in any case, and value.
    """
    attributes: dict[str, list[str]] = {}
    if wanted is None:
        return attributes
    captured = (header for header in headers if len(header[0]) <= LONGEST_ADDRESS and wanted.fullmatch(header[0]))
    for name, value in islice(captured, _MOST_HEADERS):
        plain = name.lower().replace("-", "_")
        hidden = options.sanitized_headers is not None and options.sanitized_headers.search(name) is not None
        hidden = hidden or (plain in SECRET_HEADERS and plain not in named_headers(wanted.pattern))
        # Referer and Location hold URLs.
        shown = "[REDACTED]" if hidden else _SECRETS.sub(_redacted, value[:LONGEST_TEXT])
        attributes.setdefault(f"http.{kind}.header.{plain}", []).append(shown)
    return attributes


@functools.lru_cache(maxsize=128)
def _split_host(host: str, scheme: str) -> tuple[str, int]:
    """Return the address and the port of ``shop.example.com:8000``, ``[::1]:8000`` or ``shop.example.com``."""
    address, colon, port = host.rpartition(":")
    if not colon or host.endswith("]"):
        address, port = host, ""
    number = int(port) if port.isascii() and port.isdecimal() and len(port) <= len("65535") else 0
    return address.removeprefix("[").removesuffix("]"), number or _DEFAULT_PORTS.get(scheme, 0)
