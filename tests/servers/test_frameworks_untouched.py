"""What an application can see of its framework is what it is without this package, whether or not that traces."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import environment

# What is replaced in each framework, for inspect and pickle; and what each framework lists of an application.
SEEN = """
import importlib, inspect, json, os, pickle, sys

if os.environ["DOOR"]:
    import mackerel_otel_server
    mackerel_otel_server.instrument()

REPLACED = [
    "bottle:Bottle.__call__",
    "bottle:HTTPError.__init__",
    "bottle:Router.match",
    "django.core.handlers.asgi:ASGIHandler.__call__",
    "django.core.handlers.base:BaseHandler.resolve_request",
    "django.core.handlers.wsgi:WSGIHandler.__call__",
    "falcon.app:App.__call__",
    "falcon.app:App.__init__",
    "falcon.app:App._get_responder",
    "falcon.app:App._python_error_handler",
    "falcon.asgi.app:App.__call__",
    "falcon.asgi.app:App._python_error_handler",
    "fastapi.applications:FastAPI.__call__",
    "flask:Flask.__call__",
    "flask:Flask.full_dispatch_request",
    "flask:Flask.handle_exception",
    "pyramid.router:Router.__call__",
    "pyramid.router:Router.invoke_request",
    "starlette.applications:Starlette.__call__",
    "starlette.routing:Mount.handle",
    "starlette.routing:Route.handle",
    "starlette.routing:WebSocketRoute.handle",
    "werkzeug.middleware.dispatcher:DispatcherMiddleware.__call__",
]

def asked(ask, *args):
    try:
        return str(ask(*args))
    except Exception as error:
        return type(error).__name__

def looks(function):
    names = ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__")
    return {
        **{name: str(getattr(function, name, None)) for name in names},
        "signature": asked(inspect.signature, function),
        "getfullargspec": asked(inspect.getfullargspec, function),
        "iscoroutinefunction": inspect.iscoroutinefunction(function),
        "getsource": asked(inspect.getsource, function),
        "pickle": asked(lambda: pickle.loads(pickle.dumps(function)) is function),
    }

seen = {}
for name in REPLACED:
    module, _, path = name.partition(":")
    cls, _, method = path.partition(".")
    seen[name] = looks(getattr(getattr(importlib.import_module(module), cls), method))
print(json.dumps(seen))
"""
LISTED = """
import copy, inspect, json, os, sys

if os.environ["DOOR"]:
    import mackerel_otel_server
    mackerel_otel_server.instrument()

import falcon.asgi, falcon.inspect, falcon.testing, flask.signals
from asgi_falcon import application as asgi_falcon
from asgi_fastapi import application as asgi_fastapi
from asgi_starlette import application as asgi_starlette
from mysite.asgi import application as asgi_django
from web_bottle import app as web_bottle
from web_django.wsgi import application as web_django
from web_falcon import app as web_falcon
from web_flask import app as web_flask
from web_mounts import application as web_mounts
from web_pyramid import app as web_pyramid
from django.conf import settings
from pyramid.interfaces import ITweens

seen = {}
for name, app in sorted(globals().copy().items()):
    if name.startswith(("asgi_", "web_")):
        copied = copy.copy(app)
        seen[name] = {
            "signature": str(inspect.signature(app)),
            "getfullargspec": str(inspect.getfullargspec(app)),
            "is a coroutine function": inspect.iscoroutinefunction(app.__call__),
            "attributes": sorted(vars(app)) if hasattr(app, "__dict__") else sorted(app.__slots__),
            "copy": type(copied).__qualname__,
            "method": app.__call__.__qualname__,
        }
seen["falcon"] = [falcon.inspect.inspect_app(app).to_string(verbose=True) for app in (asgi_falcon, web_falcon)]
seen["falcon middleware"] = [str(app._middleware) for app in (asgi_falcon, falcon.App(), falcon.asgi.App())]
seen["falcon.testing"] = [
    falcon.testing.TestClient(asgi_falcon).simulate_get("/items/7").text,
    falcon.testing.TestClient(web_falcon).simulate_get("/items/7").text,
]
seen["django"] = settings.MIDDLEWARE
seen["flask"] = [
    len(getattr(web_flask, name))
    for name in ("before_request_funcs", "after_request_funcs", "teardown_request_funcs", "error_handler_spec")
]
seen["flask signals"] = [
    bool(getattr(signal, "receivers", None))
    for signal in (flask.signals.request_started, flask.signals.request_finished)
]
seen["starlette"] = [
    [[middleware.cls.__name__ for middleware in app.user_middleware], [repr(type(route)) for route in app.routes]]
    for app in (asgi_starlette, asgi_fastapi)
]
seen["pyramid"] = str(web_pyramid.registry.queryUtility(ITweens).explicit)
seen["bottle"] = [
    [type(plugin).__name__ for plugin in web_bottle.plugins],
    {name: len(hooks) for name, hooks in web_bottle._hooks.items()},
    [route.rule for route in web_bottle.routes],
]
print(json.dumps(seen))
"""
MODES = {
    "on": {"MACKEREL_APIKEY": "test-key", "OTEL_TRACES_EXPORTER": "none"},
    "without a key": {},
    "disabled": {"OTEL_SDK_DISABLED": "true"},
}


def run(tmp_path: Path, script: str, door: str, **variables: str) -> dict[str, Any]:
    env = environment(None, DOOR=door, DJANGO_SETTINGS_MODULE="web_django.settings", **variables)
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    seen: dict[str, Any] = json.loads(result.stdout)
    return seen


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("script", [SEEN, LISTED], ids=["what is replaced", "what is listed"])
def test_an_application_sees_its_framework_as_it_is(tmp_path: Path, script: str, mode: str) -> None:
    untouched, ours = run(tmp_path, script, ""), run(tmp_path, script, "instrument", **MODES[mode])
    for name, seen in untouched.items():
        assert ours[name] == seen, name
