"""A WSGI callable without a framework."""


def application(environ, start_response):
    body = f"fish {environ['PATH_INFO'].rpartition('/')[2]}\n".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def traced():
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(application)
