"""Whether an error means that the client has left, for which the application is not to blame."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.threads import original

if TYPE_CHECKING:
    from collections.abc import Callable

_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
"""The numbers of errors that Gunicorn's workers take for a normal end of a connection."""


def client_has_left(error: BaseException, find_connection: Callable[[], Any]) -> bool:
    """Tell whether an error comes from a client that has left. Never raises.

    The type of the error does not tell, because a connection to a database may be reset as well.

    Args:
        error: The exception that has left the application.
        find_connection: Returns the client's socket or its file descriptor; None if nobody knows it.
    """
    if not isinstance(error, OSError) or error.errno not in {None, *_GONE}:
        return False
    try:
        import select

        connection = find_connection()
        if connection is None or (error.errno is None and not isinstance(connection, int)):
            # An error without a number comes from uWSGI, where the connection is a file descriptor, or from a library.
            return False
        # gevent's poll() knows no such flag.
        poll = original("select", "poll")()
        poll.register(connection, getattr(select, "POLLRDHUP", 0))
        return bool(poll.poll(0))
    except (OSError, ValueError):
        # The application has closed it.
        return True
    except Exception:
        log.debug("nobody knows whether the client has left", exc_info=True)
        return False
