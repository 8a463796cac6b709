"""One logger for the package. Its lines reach the host server's log whatever the application does to logging."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

NAME = "mackerel_otel_server"
_SERVERS = ("uvicorn.error", "hypercorn.error", "werkzeug", "waitress")
"""The loggers of servers that have no hook of ours. Python's logging alone would drop what is below WARNING there."""

_format_exception = logging.Formatter().formatException

_write_to_host: Callable[[logging.LogRecord], None] | None = None


class _HostHandler(logging.Handler):
    """Hand a record to the host server, or where none is known to whoever logs in this process."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            (_write_to_host or _write)(record)
        except Exception:
            # Like logging itself: a line that cannot be written is no reason to fail.
            self.handleError(record)


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
        if record.levelno >= logging.INFO:
            print(f"[{NAME}] {record.levelname.lower()}: {text(record)}", file=sys.stderr, flush=True)

    to_host(write)


def _write(record: logging.LogRecord) -> None:
    """Write a line to the log of the server that runs here, else to the application's logger ``mackerel_otel_server``.

    Looked up for each line: a server sets its log up when it is called, maybe after the application.
    """
    for name in _SERVERS:
        log_of_server = logging.getLogger(name)
        # Only the server itself gives its log a level, when it runs.
        if log_of_server.level and log_of_server.hasHandlers() and record.levelno >= log_of_server.level:
            _write_to_server(log_of_server, record)
            return
    logger = logging.getLogger(NAME)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _write_to_server(error_log: logging.Logger, record: logging.LogRecord) -> None:
    # Logger.handle() would drop the record when dictConfig has set `disabled`.
    if record.levelno >= error_log.getEffectiveLevel():
        # The handlers are shared with the server's own lines, which do not say who speaks.
        named = logging.makeLogRecord({**vars(record), "msg": f"{NAME}: {record.getMessage()}", "args": None})
        error_log.callHandlers(named)
