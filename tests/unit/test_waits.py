"""Waits of our threads, on every Python."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress

import pytest

from mackerel_otel_server.process.threads import Empty, get_within

DEADLINE = 20.0


@pytest.mark.parametrize("timeout", [0.0, 5e-7, -1.0])
def test_a_wait_for_next_to_nothing_ends(timeout: float) -> None:
    """SimpleQueue.get() itself would wait for ever after some thousand rounds on CPython 3.10 to 3.12."""
    rounds: list[int] = []
    found: list[None] = []

    def wait() -> None:
        for number in range(60_000 if timeout <= 0 else 5_000):
            waiting: queue.SimpleQueue[None] = queue.SimpleQueue()
            if number % 2:
                waiting.put(None)
                get_within(waiting, timeout)
            with suppress(Empty):
                found.append(get_within(waiting, timeout))
        rounds.append(number)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert rounds
    assert found == []


def test_what_comes_in_time_is_returned() -> None:
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    threading.Timer(0.1, waiting.put, [5]).start()
    began = time.monotonic()
    assert get_within(waiting, DEADLINE) == 5
    assert time.monotonic() - began < DEADLINE / 2
    with pytest.raises(Empty):
        get_within(waiting, 0.01)
