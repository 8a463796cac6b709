"""A WSGI callable that names its route, as a framework does to whoever makes the server span."""

from opentelemetry import trace

ROUTE = "/fish/{number}"


def application(environ, start_response):
    body = f"fish {environ['PATH_INFO'].rpartition('/')[2]}\n".encode()
    name_route(environ)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def name_route(carrier):
    ours = carrier.get("mackerel_otel_server.request")
    if ours is not None and ours.span is not None:
        ours.route = ROUTE
        return
    # As OpenTelemetry's instrumentations of frameworks do.
    span = trace.get_current_span()
    if span.is_recording():
        span.update_name(f"GET {ROUTE}")
        span.set_attribute("http.route", ROUTE)


def traced():
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(application)
