"""A Pyramid application with everything that has to do with routes and errors."""

from pyramid.config import Configurator
from pyramid.httpexceptions import HTTPForbidden, HTTPFound, HTTPServiceUnavailable
from pyramid.response import Response


class HandledError(Exception):
    pass


class Root(dict):
    def __init__(self, request):
        self["place"] = {}


def item(request):
    return Response(request.matchdict["item"])


def fail(request):
    kind = request.matchdict["kind"]
    if kind == "handled":
        raise HandledError("on purpose")
    if kind == "403":
        raise HTTPForbidden
    if kind == "503":
        raise HTTPServiceUnavailable
    if kind == "redirect":
        raise HTTPFound("/items/1")
    raise ValueError(kind)


def handle(error, request):
    return Response("handled", status=409)


def traversed(context, request):
    return Response("place")


def part(config):
    config.add_route("part", "x/{item}")
    config.add_view(item, route_name="part")


with Configurator(root_factory=Root) as config:
    config.add_route("item", "/items/{item}")
    config.add_view(item, route_name="item", request_method="GET")
    config.add_route("fail", "fail/{kind}")
    config.add_view(fail, route_name="fail")
    config.add_exception_view(handle, context=HandledError)
    config.add_view(traversed, context=dict)
    config.include(part, route_prefix="part")
    app = config.make_wsgi_app()
