"""Where an application sends its spans to, as its operator types it."""

from __future__ import annotations

import socket
from contextlib import suppress
from urllib.parse import urlsplit

from mackerel_otel_server.settings.urls import is_loopback

PATH = "/v1/traces"
LOOPBACK = "127.0.0.1"
MADE_UP_KEY = "a-made-up-key-for-a-receiver-on-this-machine"
"""For whoever sends to a receiver of ours. It has the 44 characters of an API key of Mackerel's."""
# What stands for every address of this machine, and an address that is nobody's (RFC 5737, RFC 3849): the way there
# tells which of ours others see.
_WILDCARDS = {
    "": (socket.AF_INET, "192.0.2.1", LOOPBACK),
    "0.0.0.0": (socket.AF_INET, "192.0.2.1", LOOPBACK),  # noqa: S104
    "::": (socket.AF_INET6, "2001:db8::1", "::1"),
}


def is_wildcard(host: str) -> bool:
    """Return whether a host to listen on stands for all addresses."""
    return host in _WILDCARDS


def local(host: str) -> str:
    """Return the address by which this machine reaches what listens on ``host``."""
    return _WILDCARDS[host][2] if host in _WILDCARDS else host


def reachable(host: str) -> str:
    """Return the address by which others reach what listens on ``host``, as far as this machine knows."""
    if host not in _WILDCARDS:
        return host
    family, elsewhere, loopback = _WILDCARDS[host]
    # No packet is sent. Without a network there is no way, and nobody else.
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((elsewhere, 9))
        return str(probe.getsockname()[0])
    return loopback


def url(host: str, port: int) -> str:
    """Return the whole URL for traces."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}{PATH}"


def variables(endpoint: str, *, key: str) -> str:
    """Return what comes before the command that starts an application.

    Args:
        endpoint: The whole URL for traces.
        key: What stands for the API key. It goes over http to this machine only: to another one, as to a Collector,
            none does.
    """
    if is_loopback(urlsplit(endpoint).hostname or ""):
        return f"MACKEREL_OTEL_ENDPOINT={endpoint} MACKEREL_APIKEY={key}"
    return f"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={endpoint}"
