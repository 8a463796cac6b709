"""Requests one after the other, and a signal handler that reports the one under way wherever it is."""

import random
import signal
import sys
import time

import stuck

import mackerel_otel_server
from mackerel_otel_server.servers import before_the_kill
from mackerel_otel_server.tracing.requests.killed import Killing

INTERRUPTIONS = 2000
TIMEOUT = 10.0


def main():
    mackerel_otel_server.instrument()
    application = mackerel_otel_server.trace_wsgi(serve)
    killing = Killing("test.Killed", "killed")
    watch = before_the_kill.Watcher(())
    interruptions = 0
    longest = 0.0

    def interrupt(*_):
        nonlocal interruptions, longest
        interruptions += 1
        begin = time.monotonic()
        watch.report(killing, TIMEOUT)
        longest = max(longest, time.monotonic() - begin)
        # The last one sets no other: that could arrive when Python has put SIGALRM back to its default, which kills.
        if interruptions < INTERRUPTIONS:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00001, 0.001))

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    requests = 0
    while interruptions < INTERRUPTIONS:
        environ = {"REQUEST_METHOD": "GET", "PATH_INFO": f"/{requests}", "QUERY_STRING": "", "wsgi.url_scheme": "http"}
        body = application(environ, lambda *_: None)
        for _ in body:
            pass
        getattr(body, "close", tuple)()
        requests += 1
    mackerel_otel_server.shutdown()
    print(requests, longest, mackerel_otel_server.stats()["finished"])
    sys.stdout.flush()


def serve(environ, start_response):
    with stuck.tracer.start_as_current_span("work") as span:
        span.set_attribute("list", ["a", "b"])
        try:
            raise ValueError("handled")
        except ValueError as error:
            span.record_exception(error)
    return stuck.application({**environ, "PATH_INFO": "/"}, start_response)


if __name__ == "__main__":
    main()
