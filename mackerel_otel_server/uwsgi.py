"""The uWSGI door: ``import = mackerel_otel_server.uwsgi`` in the ini file.

uWSGI runs this module in the master, before it loads the application, or under ``lazy-apps`` in each worker, when the
post-fork hooks have run already. Without a master it runs in the one process that becomes worker 1 and forks the rest.
https://uwsgi-docs.readthedocs.io/en/latest/PythonModule.html
"""

from __future__ import annotations

try:
    import uwsgi  # noqa: F401 - the module that the server itself provides to the code it runs
except ImportError as error:
    raise ImportError(
        "mackerel_otel_server.uwsgi works inside a uWSGI server only: put `import = mackerel_otel_server.uwsgi` into "
        "its ini file; elsewhere call mackerel_otel_server.instrument()"
    ) from error

# The server's start consists of imports for the most part, so signals must wait before the rest is imported. This uses
# _signal, which the module signal is made of, because signal imports enum: that takes longer than all lines above.
from _signal import SIG_BLOCK, SIGHUP, SIGINT, SIGTERM, pthread_sigmask  # type: ignore[import-not-found]

_mask = pthread_sigmask(SIG_BLOCK, {SIGHUP, SIGINT, SIGTERM})

from mackerel_otel_server.servers.uwsgi_signals import Held  # noqa: E402 - signals wait now

with Held(_mask):
    from mackerel_otel_server.servers.uwsgi import install

    install()
