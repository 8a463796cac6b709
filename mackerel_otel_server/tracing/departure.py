"""Whether an error means that the client has left, which is no fault of the application's."""

from __future__ import annotations

import errno
from typing import Any, Final

from mackerel_otel_server.native import original

_GONE: Final = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN})
"""What Gunicorn's workers take for a normal end. uWSGI's errors have no number."""


def client_has_left(error: BaseException, connection: Any) -> bool:
    """Tell whether an error comes from a client that has left: a connection to a database may be reset as well.

    Args:
        error: What has left the application.
        connection: The client's socket or its file descriptor; None where nobody knows it.
    """
    if connection is None or not isinstance(error, OSError) or error.errno not in {None, *_GONE}:
        return False
    import select

    try:
        # gevent's poll() knows no such flag.
        poll = original("select", "poll")()
        poll.register(connection, getattr(select, "POLLRDHUP", 0))
        return bool(poll.poll(0))
    except (OSError, ValueError):
        # The application has closed it.
        return True
