"""The Gunicorn door for a configuration file of the user's own, whose last two lines import and call ``install()``."""

from mackerel_otel_server.servers.gunicorn import (
    install,
    on_reload,
    on_starting,
    post_fork,
    post_worker_init,
    worker_abort,
    worker_exit,
)

__all__ = ["install", "on_reload", "on_starting", "post_fork", "post_worker_init", "worker_abort", "worker_exit"]
