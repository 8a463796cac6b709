#!/usr/bin/env python3
"""Write the tables of docs/server-modes.md and docs/server-modes.ja.md, from what the tests have found.

    pytest --junitxml=results.xml …
    scripts/server_modes.py results.xml           writes the tables
    scripts/server_modes.py --check results.xml   exit status 1 if the pages say anything else

A test says by the fixture ``shown`` which cells it stands for. A cell is ✓ when all of its tests have passed, with the
letter of a note where one of them shows a limit, ✗ when one has failed, and empty without a test.
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ET  # the tests' own output
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("sync", "gthread", "gevent", "tornado", "asgi", "uvicorn_worker.UvicornWorker")
KILLED = ("SIGKILL: a worker", "SIGKILL: all workers", "SIGKILL: the server")
# Of each table: its name on the pages, rows, columns. Rows and columns are what the tests call them.
TABLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "gunicorn": (
        CLASSES,
        (
            *("start", "TERM", "INT", "QUIT", "HUP", "TTOU", "WINCH", "max_requests", "boot failure"),
            *("hanging endpoint", "timeout", "graceful_timeout"),
        ),
    ),
    "gunicorn modes": (
        (
            *("preload_app", "https", "--reload", "USR2", "raw_env", "GUNICORN_CMD_ARGS", "dirty_workers"),
            "os.fork, multiprocessing",
        ),
        CLASSES,
    ),
    "uwsgi": (
        (
            *("master", "no master", "lazy-apps", "threads", "gevent = 20", "gevent, lazy-apps", "gevent, patched"),
            *("cheaper", "emperor", "master, Debian's"),
        ),
        (
            *("start", "TERM", "INT", "QUIT", "touch-reload", "FIFO r", "FIFO c", "max-requests", "reload-on-rss"),
            *("boot failure", "hanging endpoint", "harakiri", "set_user_harakiri", "os.fork, multiprocessing"),
        ),
    ),
    "gunicorn killed": (
        ("sync", "sync, preload_app", *CLASSES[1:]),
        (*KILLED, "HUP, endpoint down", "TERM, endpoint down"),
    ),
    "uwsgi killed": (
        ("master", "no master", "lazy-apps", "threads", "gevent = 20", "gevent, lazy-apps", "gevent, patched"),
        (*KILLED, "TERM, busy", "INT, busy", "QUIT, busy", "TERM, endpoint down"),
    ),
}
# The pages' words for what the tests call otherwise.
WORDS: dict[str, dict[str, str]] = {
    "docs/server-modes.md": {
        "gunicorn": "Gunicorn",
        "gunicorn modes": "Gunicorn",
        "uwsgi": "uWSGI",
        "gunicorn killed": "Gunicorn",
        "uwsgi killed": "uWSGI",
        "SIGKILL: a worker": "SIGKILL to a worker",
        "SIGKILL: all workers": "SIGKILL to all workers",
        "SIGKILL: the server": "SIGKILL to the whole server",
        "HUP, endpoint down": "`HUP`, the endpoint is down",
        "TERM, endpoint down": "`TERM`, the endpoint is down",
        "TERM, busy": "`TERM`, busy",
        "INT, busy": "`INT`, busy",
        "QUIT, busy": "`QUIT`, busy",
        "sync, preload_app": "`sync`, `preload_app`",
        "boot failure": "an application that cannot be loaded",
        "hanging endpoint": "an endpoint that hangs",
        "https": "https to the endpoint",
        "USR2": "`USR2` (new binary)",
        "dirty_workers": "beside `dirty_workers`",
        "os.fork, multiprocessing": "`os.fork`, `multiprocessing`",
        "no master": "without `master`",
        "threads": "`threads = 4`",
        "gevent, lazy-apps": "`gevent`, `lazy-apps`",
        "gevent, patched": "`gevent-monkey-patch`",
        "emperor": "a vassal of the emperor",
        "master, Debian's": "Debian 12's 2.0.21",
    },
    "docs/server-modes.ja.md": {
        "gunicorn": "Gunicorn",
        "gunicorn modes": "Gunicorn",
        "uwsgi": "uWSGI",
        "gunicorn killed": "Gunicorn",
        "uwsgi killed": "uWSGI",
        "SIGKILL: a worker": "1 つのワーカーに SIGKILL",
        "SIGKILL: all workers": "すべてのワーカーに SIGKILL",
        "SIGKILL: the server": "サーバー全体に SIGKILL",
        "HUP, endpoint down": "送信先が停止中の `HUP`",
        "TERM, endpoint down": "送信先が停止中の `TERM`",
        "TERM, busy": "処理中の `TERM`",
        "INT, busy": "処理中の `INT`",
        "QUIT, busy": "処理中の `QUIT`",
        "sync, preload_app": "`sync`、`preload_app`",
        "start": "起動",
        "boot failure": "読み込めないアプリケーション",
        "hanging endpoint": "応答しない送信先",
        "https": "https の送信先",
        "USR2": "`USR2`(バイナリの入れ替え)",
        "dirty_workers": "`dirty_workers` と併用",
        "os.fork, multiprocessing": "`os.fork`、`multiprocessing`",
        "no master": "`master` なし",
        "threads": "`threads = 4`",
        "gevent, lazy-apps": "`gevent`、`lazy-apps`",
        "gevent, patched": "`gevent-monkey-patch`",
        "emperor": "emperor の vassal",
        "master, Debian's": "Debian 12 の 2.0.21",
    },
}
PLAIN = {"start"}

Cells = Mapping[tuple[str, str], str]


def main() -> int:
    """Write or check the tables; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing, say what differs")
    parser.add_argument("results", type=Path, help="what pytest --junitxml has written")
    arguments = parser.parse_args()
    if arguments.check and not arguments.results.exists():
        print("only a part of the tests has run: the tables of server modes were not checked")
        return 0
    cells = read(arguments.results)
    differ = [name for name in WORDS if not write(name, cells, check=arguments.check)]
    if differ:
        print(f"{' and '.join(differ)}: the tables of server modes say something else than the tests; type:")
        print(f"    scripts/server_modes.py {arguments.results}")
    return int(bool(differ))


def read(results: Path) -> Cells:
    """Return what stands in each cell that has a test."""
    states: dict[tuple[str, str], set[str]] = defaultdict(set)
    for case in ET.parse(results).iter("testcase"):  # noqa: S314 - the tests' own output
        failed = case.find("failure") is not None or case.find("error") is not None
        for entry in case.iter("property"):
            if entry.get("name") == "server mode":
                row, column, limit = entry.get("value", "").split("|")
                states[row, column].add("✗" if failed else limit)
    return {cell: "✗" if "✗" in found else f"✓ {''.join(sorted(found))}".strip() for cell, found in states.items()}


def write(page: str, cells: Cells, *, check: bool) -> bool:
    """Put the tables between their marks; return whether nothing is to be done."""
    text = before = (ROOT / page).read_text(encoding="utf-8")
    for name in TABLES:
        begin, end = f"<!-- {name}: scripts/server_modes.py -->\n", f"<!-- {name}: end -->\n"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = head + begin + table(name, cells, WORDS[page]) + end + tail
    if not check:
        (ROOT / page).write_text(text, encoding="utf-8")
        return True
    return text == before


def table(name: str, cells: Cells, words: Mapping[str, str]) -> str:
    """Return one table in Markdown."""

    def shown(word: str) -> str:
        return words.get(word, word if word in PLAIN else f"`{word}`")

    rows, columns = TABLES[name]
    lines = [[shown(name), *map(shown, columns)], ["---", *(":-:" for _ in columns)]]
    lines += [[shown(row), *(cells.get((row, column), "") for column in columns)] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
