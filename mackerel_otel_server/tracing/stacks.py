"""Where a request is at this moment, seen from another thread: the stack of its thread, greenlet or task."""

from __future__ import annotations

import gc
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from mackerel_otel_server.tracing.request import Request

_MOST_FRAMES: Final = 100
"""The innermost ones."""
_OURS: Final = __name__.rpartition(".")[0] + "."


def finder() -> Callable[[Request], str]:
    """Look at all threads now, and at all greenlets if need be.

    Returns:
        A function that returns the innermost frames of a request, in the words of a traceback: those that it runs if it
        runs, those that it waits in if it waits; those of its thread where neither is known.
    """
    threads = sys._current_frames()  # noqa: SLF001 - documented
    found: dict[int, list[tuple[FrameType, int]]] = {}
    for frame in threads.values():
        _find_requests(_stack(frame), found)
    greenlets_are_known = False

    def stack_of(request: Request) -> str:
        nonlocal greenlets_are_known
        frames = found.get(id(request))
        if frames is None and request.coroutine is not None:
            frames = list(_awaited(request.coroutine))
        if frames is None and "greenlet" in sys.modules and not greenlets_are_known:
            greenlets_are_known = True
            for frame in _greenlet_frames():
                _find_requests(_stack(frame), found)
            frames = found.get(id(request))
        if frames is None:
            frame_of_thread = threads.get(request.thread)
            frames = _stack(frame_of_thread) if frame_of_thread is not None else []
        summary = traceback.StackSummary.extract(iter(frames[-_MOST_FRAMES:]), lookup_lines=True)
        return "".join(summary.format())

    return stack_of


def _stack(frame: FrameType | None) -> list[tuple[FrameType, int]]:
    """Return frames and their lines, the innermost last."""
    frames = []
    while frame is not None:
        frames.append((frame, frame.f_lineno or 0))
        frame = frame.f_back
    return frames[::-1]


def _find_requests(frames: list[tuple[FrameType, int]], found: dict[int, list[tuple[FrameType, int]]]) -> None:
    """Note what a stack holds below each function of ours that serves a request."""
    for number, (frame, _) in enumerate(frames):
        if not str(frame.f_globals.get("__name__", "")).startswith(_OURS):
            continue
        if (request := frame.f_locals.get("begun")) is not None:
            found[id(request)] = _without_handler(frames[number + 1 :]) or frames[number:]


def _without_handler(frames: list[tuple[FrameType, int]]) -> list[tuple[FrameType, int]]:
    """Return what Gunicorn's handler of a signal has interrupted."""
    for number, (frame, _) in enumerate(frames):
        if str(frame.f_globals.get("__name__", "")).startswith("gunicorn.workers."):
            return frames[:number]
    return frames


def _awaited(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield where a suspended coroutine waits, the innermost last, without its own frame, which is ours."""
    awaited = getattr(coroutine, "cr_await", None)
    while awaited is not None:
        # A coroutine, or a generator in its place; what wraps a future has neither.
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            return
        yield frame, frame.f_lineno or 0
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def _greenlet_frames() -> Iterator[FrameType]:
    """Yield the frames of suspended greenlets: nothing but the garbage collector knows them all."""
    greenlet = sys.modules["greenlet"].greenlet
    for thing in gc.get_objects():
        if isinstance(thing, greenlet) and (frame := thing.gr_frame) is not None:
            yield frame
