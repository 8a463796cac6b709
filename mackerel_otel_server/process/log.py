"""One logger for the package. Its lines reach the host server's log whatever the application does to logging."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress

NAME = "mackerel_otel_server"
_SERVERS = ("uvicorn.error", "hypercorn.error", "werkzeug", "waitress")
"""The loggers of servers that have no hook of ours. Python's logging alone would drop what is below WARNING there."""

_format_exception = logging.Formatter().formatException

_write_to_host: Callable[[logging.LogRecord], None] | None = None


def _standard_error() -> os.stat_result | None:
    try:
        return os.fstat(2)
    except OSError:
        return None


_standard_error_at_start = _standard_error()


class _HostHandler(logging.Handler):
    """Hand a record to the host server, or where none is known to whoever logs in this process. Never raises."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            (_write_to_host or _write)(record)
        except Exception:
            # A line that cannot be written is no reason to fail, nor for a traceback in the application's output.
            _write_to_descriptor(record)


def _hand_over(logger: logging.Logger, record: logging.LogRecord, *, plain: logging.LogRecord) -> None:
    """Call the handlers of a logger and of its parents, but for those whose stream is closed.

    Such a handler would print ``--- Logging error ---``, as happens at the exit of a process that has closed its
    streams before.

    Args:
        logger: The logger whose handlers are called.
        record: The record that they get.
        plain: The record that goes to standard error if none of the handlers can write.
    """
    handlers: list[logging.Handler] = []
    current: logging.Logger | None = logger
    while current is not None:
        handlers += current.handlers
        current = current.parent if current.propagate else None
    if not handlers and logging.lastResort is not None:
        handlers = [logging.lastResort]
    wanted = [handler for handler in handlers if record.levelno >= handler.level]
    usable = [handler for handler in wanted if not _is_closed(handler)]
    for handler in usable:
        handler.handle(record)
    if wanted and not usable:
        _write_to_descriptor(plain)


def _is_closed(handler: logging.Handler) -> bool:
    if not isinstance(handler, logging.StreamHandler):
        return False
    stream = handler.stream
    if stream is None:
        # A FileHandler with delay=True opens its file for the first line. Another handler has no stream in a daemon
        # that has no standard error.
        return not isinstance(handler, logging.FileHandler)
    return bool(getattr(stream, "closed", False))


def _write_to_descriptor(record: logging.LogRecord) -> None:
    """Write a line to standard error without Python's stream, if the descriptor is still what it was at the start.

    A process that has closed it may have got the same number for a connection.
    """
    with suppress(Exception):
        now = _standard_error()
        if now is not None and _standard_error_at_start is not None and os.path.samestat(now, _standard_error_at_start):
            os.write(2, f"[{NAME}] {record.levelname.lower()}: {text(record)}\n".encode("utf-8", "backslashreplace"))


def _make_logger() -> logging.Logger:
    # Not getLogger(): a logger that the logging manager knows is switched off by dictConfig's
    # disable_existing_loggers, Django's default.
    logger = logging.Logger(NAME)  # noqa: LOG001 - the reason is above
    logger.addHandler(_HostHandler())
    return logger


log = _make_logger()


def text(record: logging.LogRecord) -> str:
    """Return a record's message, with the traceback below it where there is one."""
    message = record.getMessage()
    return f"{message}\n{_format_exception(record.exc_info)}" if record.exc_info else message


def to_host(write: Callable[[logging.LogRecord], None] | None) -> None:
    """Send every line to ``write`` from now on, or with None back to Python's logging."""
    global _write_to_host
    _write_to_host = write


def to_gunicorn(error_log: logging.Logger) -> None:
    """Send every line to the handlers of Gunicorn's error log, also when an application has disabled that logger.

    Args:
        error_log: ``gunicorn.glogging.Logger.error_log``, i.e. the logger ``gunicorn.error``.
    """
    to_host(lambda record: _write_to_server(error_log, record))


def to_stderr() -> None:
    """Send every line of level INFO and above to standard error."""

    def write(record: logging.LogRecord) -> None:
        if record.levelno < logging.INFO:
            return
        if sys.stderr is None or sys.stderr.closed:
            _write_to_descriptor(record)
        else:
            print(f"[{NAME}] {record.levelname.lower()}: {text(record)}", file=sys.stderr, flush=True)

    to_host(write)


def _write(record: logging.LogRecord) -> None:
    """Write a line to the log of the server that runs here, else to the application's logger ``mackerel_otel_server``.

    The server's logger is looked up for each line, because a server may set up its log after it loads the application.
    """
    for name in _SERVERS:
        # Not getLogger(): a logger that this made would be switched off by dictConfig's disable_existing_loggers.
        log_of_server = logging.Logger.manager.loggerDict.get(name)
        if not isinstance(log_of_server, logging.Logger):
            continue
        # Only the server itself gives its log a level, when it runs.
        if log_of_server.level and log_of_server.hasHandlers() and record.levelno >= log_of_server.level:
            _write_to_server(log_of_server, record)
            return
    logger = logging.getLogger(NAME)
    if logger.isEnabledFor(record.levelno) and logger.filter(record):
        _hand_over(logger, record, plain=record)


def _write_to_server(error_log: logging.Logger, record: logging.LogRecord) -> None:
    # Logger.handle() would drop the record when dictConfig has set `disabled`.
    if record.levelno >= error_log.getEffectiveLevel():
        # The handlers are shared with the server's own lines, which do not say who speaks.
        named = logging.makeLogRecord({**vars(record), "msg": f"{NAME}: {record.getMessage()}", "args": None})
        _hand_over(error_log, named, plain=record)
