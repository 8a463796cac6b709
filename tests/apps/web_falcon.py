"""A Falcon application with everything that has to do with routes and errors."""

import pathlib

import falcon


class HandledError(Exception):
    pass


class Item:
    def on_get(self, req, resp, item):
        resp.text = str(item)


class Fail:
    def on_get(self, req, resp, kind):
        if kind == "handled":
            raise HandledError("on purpose")
        if kind == "404":
            raise falcon.HTTPNotFound
        if kind == "503":
            raise falcon.HTTPServiceUnavailable
        if kind == "redirect":
            raise falcon.HTTPFound("/items/1")
        if kind == "stream":
            resp.stream = self.parts()
            return
        raise ValueError(kind)

    def parts(self):
        yield b"one "
        raise ValueError("stream")


class Complete:
    def process_request(self, req, resp):
        if req.path == "/complete":
            resp.complete = True


def handle(req, resp, error, params):
    resp.status = falcon.HTTP_409


def sink(req, resp):
    resp.text = "sink"


app = falcon.App(middleware=[Complete()])
app.add_error_handler(HandledError, handle)
app.add_route("/items/{item:int}", Item())
app.add_route("/fail/{kind}", Fail())
app.add_sink(sink, "/sink")
app.add_static_route("/static", str(pathlib.Path(__file__).parent))
