"""Where an application sends its spans to, as its operator types it."""

from __future__ import annotations

import argparse
import socket
from contextlib import suppress

from mackerel_otel_server.settings.urls import leads_to_this_machine

PATH = "/v1/traces"
LOOPBACK = "127.0.0.1"
MADE_UP_KEY = "a-made-up-key-for-a-receiver-on-this-machine"
"""For whoever sends to a receiver of ours. Like an API key of Mackerel's, it has 44 characters."""
WILDCARDS = {
    "": (socket.AF_INET, "192.0.2.1", LOOPBACK),
    "0.0.0.0": (socket.AF_INET, "192.0.2.1", LOOPBACK),  # noqa: S104
    "::": (socket.AF_INET6, "2001:db8::1", "::1"),
}
"""Each host that stands for every address of this machine, with its family, an address elsewhere and that of loopback.

The addresses elsewhere are nobody's (RFC 5737, RFC 3849): the way there tells by which address others see this machine.
"""


def understood(host: str) -> str:
    """Return a host to listen on; of the many spellings of "every address", such as ``0``, the usual one."""
    with suppress(OSError, UnicodeError):
        found = str(socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)[0][4][0])
        return found if found in WILDCARDS else host
    return host


def port(text: str) -> int:
    """Understand a port, or raise ArgumentTypeError."""
    if text.isascii() and text.isdigit() and int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: expected 0 to 65535")


def local(host: str) -> str:
    """Return the address by which this machine reaches what listens on ``host``."""
    return WILDCARDS[host][2] if host in WILDCARDS else host


def reachable(host: str) -> str:
    """Return the address by which others reach what listens on ``host``, as far as this machine knows."""
    if host not in WILDCARDS:
        return host
    family, elsewhere, loopback = WILDCARDS[host]
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

    A key goes over http to this machine only: to another one, as to a Collector, none does.
    """
    if leads_to_this_machine(endpoint):
        return f"MACKEREL_OTEL_ENDPOINT={endpoint} MACKEREL_APIKEY={key}"
    return f"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={endpoint}"
