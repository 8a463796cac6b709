"""Whether an error means that the client has left, which is no fault of the application's."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from mackerel_otel_server.log import log
from mackerel_otel_server.native import original

if TYPE_CHECKING:
    from collections.abc import Callable

_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
"""The numbers of errors that Gunicorn's workers take for a normal end of a connection."""


def client_has_left(error: BaseException, find_connection: Callable[[], Any]) -> bool:
    """Tell whether an error comes from a client that has left: a connection to a database may be reset as well.

    Never raises.

    Args:
        error: What has left the application.
        find_connection: Returns the client's socket or its file descriptor; None where nobody knows it.
    """
    if not isinstance(error, OSError) or error.errno not in {None, *_GONE}:
        return False
    try:
        import select

        connection = find_connection()
        if connection is None or (error.errno is None and not isinstance(connection, int)):
            # An error without a number is uWSGI's, which tells a descriptor, or that of a library.
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
