"""Frameworks below paths: static ones, and one of its own for each tenant."""

from wsgiref.util import shift_path_info

from werkzeug.exceptions import NotFound
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from web_django.wsgi import application as django
from web_falcon import app as falcon
from web_flask import app as flask


def by_tenant(environ, start_response):
    environ["tenant"] = shift_path_info(environ)
    return flask(environ, start_response)


application = DispatcherMiddleware(
    NotFound(),
    {
        "/flask": flask,
        "/deep": DispatcherMiddleware(NotFound(), {"/falcon": falcon, "/django": django}),
        "/tenants": by_tenant,
    },
)
