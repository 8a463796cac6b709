"""Arguments that several sub-commands have."""

from __future__ import annotations

import argparse


def port(text: str) -> int:
    """Understand a port.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if text.isascii() and text.isdigit() and int(text) < 1 << 16:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no port: expected 0 to 65535")


def add_page(parser: argparse.ArgumentParser, *, default_port: int) -> None:
    """Add ``--web`` and ``--web-port``, which stands for both."""
    parser.add_argument(
        "--web",
        dest="web_port",
        action="store_const",
        const=default_port,
        help="show the latest traces on a page, for browsers on this machine",
    )
    usual = f"default: {default_port}" if default_port else "default: any free one"
    parser.add_argument("--web-port", type=port, metavar="PORT", help=f"--web on this port, 0: any free one ({usual})")
