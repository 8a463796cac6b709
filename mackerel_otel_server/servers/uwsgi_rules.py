"""What uWSGI's options mean for tracing. ``check`` asks about the ini file, a server about its own options.

Nothing here imports ``uwsgi``, which only the server has.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from mackerel_otel_server.process.log import log
from mackerel_otel_server.settings import catalogue, environment
from mackerel_otel_server.settings.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODULES: Final = ("module", "wsgi")
FILES: Final = ("wsgi-file", "file")
_FALSE: Final = ("false", "off", "no", "0")
_THREADS_BY_DEFAULT: Final = (2, 0, 27)
_KNOWS_THRESHOLD: Final = (2, 0, 22)
"""The first release with harakiri-queue-threshold; older ones take any option, and kill."""
_CRASHES_IN_FORK_HOOKS: Final = (3, 12)
"""The first Python whose interpreter crashes when uWSGI calls its hooks at a fork."""
_MERCY: Final = 60
"""Seconds that uWSGI waits for a worker at a reload or at its end, unless it is told otherwise."""
_START_A_MASTER: Final = (
    *("master", "attach-daemon", "cheaper", "cheaper-initial", "cron", "idle", "log-master", "logger", "mule", "mules"),
    *("py-autoreload", "req-logger", "spooler", "stats", "touch-chain-reload", "touch-reload", "unique-cron"),
)
_RELOAD_ON_EXCEPTION: Final = tuple(f"reload-on-exception{which}" for which in ("", "-type", "-value", "-repr"))
_QUEUE_WAITS: Final = (
    "what it has queued, up to OTEL_BSP_SCHEDULE_DELAY, waits in the journal for another worker, and with "
    "MACKEREL_OTEL_SPOOL=none it is lost"
)
_ENABLE_THREADS: Final = "add this line: enable-threads = true"


@dataclass(frozen=True)
class Options:
    """What a uWSGI is told."""

    options: tuple[tuple[str, str], ...]
    """In the order in which uWSGI meets them."""

    def all(self, *names: str) -> list[str]:
        """Return every value of an option that has these names."""
        return [value for name, value in self.options if name in names]

    def last(self, *names: str) -> str | None:
        """Return the value that counts."""
        return values[-1] if (values := self.all(*names)) else None

    def is_on(self, *names: str) -> bool:
        """Tell whether a switch is on; without a value it is."""
        value = self.last(*names)
        return value is not None and value.lower() not in _FALSE

    def callable_to_load(self) -> str | None:
        """Return ``package.module:name`` of the option ``module`` (alias ``wsgi``)."""
        module = self.last(*MODULES)
        return module if not module or ":" in module else f"{module}:{self.last('callable') or 'application'}"

    def spares_slow_requests(self, version: tuple[int, ...] | None) -> bool:
        """Tell whether a uWSGI of this version, None if it is not known, kills a slow request only if others wait."""
        knows_threshold = version is None or version >= _KNOWS_THRESHOLD
        return knows_threshold and (self.last("harakiri-queue-threshold") or "0") != "0"


class Judgement(NamedTuple):
    """What is said about a server: what was seen, what follows from it, and what to type."""

    level: Literal["FAIL", "WARN", "OK"]
    seen: str
    follows: str = ""
    cure: str = ""


def judge(
    options: Options, version: tuple[int, ...] | None, environ: Mapping[str, str], *, runs: bool = False
) -> Iterator[Judgement]:
    """Say what follows from the options.

    Args:
        options: The options of an ini file as uWSGI reads them, or those of the running server.
        version: The version of that uWSGI; None if it is not known.
        environ: The variables of the workers.
        runs: Whether this is the running server. Its own modules see threads and applications, and say the same.
    """
    if not runs:
        yield from _threads(options, version)
    if not any(map(options.is_on, _START_A_MASTER)):
        yield Judgement(
            "WARN",
            "uWSGI runs without a master",
            "a worker that dies is not restarted, and harakiri kills nobody",
            "add this line: master = true",
        )
    if not runs:
        yield from _interpreters(options)
    yield from _ends_of_workers(options)
    yield from _kills(options, version, environ)
    yield from _names_with_blanks(options)


def _threads(options: Options, version: tuple[int, ...] | None) -> Iterator[Judgement]:
    named = ".".join(map(str, version or ()))
    if options.is_on("enable-threads") or (options.last("threads") or "0") != "0":
        yield Judgement("OK", "uWSGI runs Python threads, which send the spans")
    elif version is None:
        yield Judgement(
            "WARN",
            "enable-threads is not set, and which uWSGI runs it is not known",
            "before uWSGI 2.0.27 there are no Python threads without it: tracing is off then",
            _ENABLE_THREADS,
        )
    elif version >= _THREADS_BY_DEFAULT:
        yield Judgement("OK", f"uWSGI {named} runs Python threads unless told otherwise")
    else:
        yield Judgement(
            "FAIL",
            f"uWSGI {named} runs no Python threads without enable-threads",
            "tracing is off, the application serves without it: spans are sent by a thread",
            _ENABLE_THREADS,
        )


def _interpreters(options: Options) -> Iterator[Judgement]:
    applications = [*options.all("mount"), *filter(None, [options.last(*MODULES, *FILES)])]
    if len(applications) > 1 and not options.is_on("single-interpreter"):
        yield Judgement(
            "WARN",
            f"there are {len(applications)} applications ({', '.join(applications)}) and no single-interpreter",
            "only the first is traced: uWSGI gives each of the others a Python interpreter of its own",
            "add this line: single-interpreter = true",
        )


def _ends_of_workers(options: Options) -> Iterator[Judgement]:
    number = options.last("async") or ""
    if number.isdecimal() and int(number) > 1 and not options.last("gevent"):
        follows = f"a leaving worker runs no code in this mode: {_QUEUE_WAITS}"
        yield Judgement("WARN", f"async = {number} is set", follows, f"put this line in its place: threads = {number}")
    if options.is_on("skip-atexit"):
        follows = f"a leaving worker sends nothing more: {_QUEUE_WAITS}"
        yield Judgement("WARN", "skip-atexit is set", follows, "remove that line")
    if options.is_on("skip-atexit-teardown"):
        yield Judgement("OK", "skip-atexit-teardown is set; this package sends before that")
    for option in filter(options.is_on, ("lazy-apps", "lazy")):
        yield Judgement("OK", f"{option} is set; each worker starts its own tracing then, too")
    for option in filter(options.is_on, _RELOAD_ON_EXCEPTION):
        yield Judgement(
            "WARN",
            f"{option} is set",
            f"uWSGI ends a worker without running any code where nobody handles an exception: {_QUEUE_WAITS}",
            "remove that line",
        )
    python = sys.version_info[:2]
    if options.is_on("py-call-uwsgi-fork-hooks") and python >= _CRASHES_IN_FORK_HOOKS:
        yield Judgement(
            "FAIL",
            f"py-call-uwsgi-fork-hooks is set and this is Python {python[0]}.{python[1]}",
            "the interpreter crashes when a worker with threads is forked",
            "remove that line; this package needs no hooks at the fork",
        )


def _kills(options: Options, version: tuple[int, ...] | None, environ: Mapping[str, str]) -> Iterator[Judgement]:
    harakiri = options.last("harakiri")
    if options.spares_slow_requests(version):
        yield Judgement(
            "WARN",
            f"harakiri-queue-threshold = {options.last('harakiri-queue-threshold')} is set",
            "whether uWSGI kills a slow request is not known beforehand: a request that it kills is not reported; "
            f"{_QUEUE_WAITS}",
            "remove that line to see the requests that harakiri kills",
        )
    elif harakiri and harakiri.isdecimal():
        yield Judgement(
            "OK",
            f"a request is killed after {harakiri} s (harakiri), and shortly before that it is sent as an error",
            "with threads = 2 or more, a request that ends stops the clock of all others in its worker",
        )
    elif harakiri:
        seen = f"harakiri = {harakiri} is no number of seconds"
        yield Judgement("WARN", seen, "uWSGI kills no request", "harakiri = 30")
    source = Reader(environ)
    timeout = source.number(catalogue.SHUTDOWN_TIMEOUT)
    given = options.last("worker-reload-mercy", "reload-mercy") or ""
    mercy = int(given) if given.isdecimal() else _MERCY
    # The settings report a value that is wrong.
    if timeout >= mercy and not source.problems:
        yield Judgement(
            "WARN",
            f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT ({timeout:g} s) is not below uWSGI's worker-reload-mercy ({mercy} s)",
            "uWSGI kills a leaving worker while it still sends; what is left then is lost",
            f"MACKEREL_OTEL_SHUTDOWN_TIMEOUT={max(mercy - 1, 0) // 2}, or raise worker-reload-mercy",
        )


def _names_with_blanks(options: Options) -> Iterator[Judgement]:
    for name in dict.fromkeys(line.partition("=")[0] for line in options.all("env")):
        if name.startswith(("MACKEREL_", "OTEL_")) and name.endswith((" ", "\t")):
            yield Judgement(
                "FAIL",
                f"env = {name}=… has a blank before its second equals sign",
                f"uWSGI makes the blank a part of the name, and nobody reads {name!r}",
                f"write that line without it: env = {name.rstrip()}=…",
            )


def report(options: Options, version: tuple[int, ...], *, has_master: bool) -> None:
    """Log what ``check`` would call a failure or a warning of the running server. Never raises.

    Args:
        options: The options of this server, each with its last value.
        version: The version of the uWSGI.
        has_master: Whether a master runs. Also other options than those that are known here may start one.
    """
    try:
        if environment.is_disabled():
            return
        environ = environment.variables()
        # Of several lines `env = …`, the environment shows them all.
        lines = [("env", f"{name}=") for name in environ if name != name.rstrip()]
        told = Options((*options.options, *lines, ("master", str(has_master).lower())))
        for level, *sentences in judge(told, version, environ, runs=True):
            if level != "OK":
                (log.error if level == "FAIL" else log.warning)("%s: %s; %s", *sentences)
    except Exception:
        log.debug("nobody knows what the options mean for tracing", exc_info=True)
