"""Forks processes that end spans, ten requests as fast as they can and then a moment's rest, until somebody kills them.

Reads a line for each process from its input: the number of its threads. With 0, a process ends a single request, and
itself when the input ends. Prints ``pid PID`` of each process, ``begin ID`` before the end of a root span, and
``end ID`` after it. Forks, because a new interpreter would need most of the time for its imports.
"""

import logging
import os
import signal
import sys
import threading
import time

import mackerel_otel_server

# What a process needs is imported once, here.
import mackerel_otel_server.pipeline
from opentelemetry import trace

tracer = trace.get_tracer("killed")
others = [trace.get_tracer(f"other {number}") for number in range(3)]


def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def of_its_own(span):
    """Let a receiver see whether a span is whole, and whether it came with the right resource."""
    span_id = f"{span.get_span_context().span_id:016x}"
    span.set_attribute("test.id", span_id)
    span.set_attribute("test.pid", os.getpid())
    return span_id


def work(rounds=1_000_000_000):
    for number in range(1, rounds + 1):
        with tracer.start_as_current_span("root") as root:
            span_id = of_its_own(root)
            for child in range(number % 20 if number % 7 == 0 else number % 3):
                with others[child % 3].start_as_current_span("child") as span:
                    of_its_own(span)
                    span.set_attribute("test.text", "x" * (number % 11 * 100))
            say("begin", span_id)
        say("end", span_id)
        if number % 10 == 0:
            time.sleep(0.03)


def process(threads):
    mackerel_otel_server.instrument()
    if not threads:
        work(1)
    say("pid", os.getpid())
    if not threads:
        sys.stdin.read()
        sys.exit(0)
    for _ in range(threads - 1):
        threading.Thread(target=work, daemon=True).start()
    work()


logging.basicConfig(level=logging.INFO, format="%(process)d %(levelname)s %(message)s")
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in iter(sys.stdin.buffer.raw.readline, b""):
    if os.fork() == 0:
        process(int(line))
