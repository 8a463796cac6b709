"""Where a request is at this moment, as another thread sees it: the stack of its thread, greenlet or task."""

from __future__ import annotations

import gc
import sys
import traceback
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType, FunctionType

    from mackerel_otel_server.tracing.requests.request import Request

_Function = TypeVar("_Function", bound="Callable[..., Any]")
_MOST_FRAMES: Final = 100
"""The innermost ones."""
_OURS: Final = "mackerel_otel_server."
_VARIABLE: Final = "begun"
"""The variable that holds the request in each function with the decorator serves()."""

_serving: set[CodeType] = set()


def serves(function: _Function) -> _Function:
    """Mark a function that runs the application's code for a request; a decorator.

    The function must have the request in a variable ``begun``. The functions that it has called, and those that they
    have called, are then the stack of this request.

    Raises:
        TypeError: The function has no such variable.
    """
    code = cast("FunctionType", function).__code__
    if _VARIABLE not in (*code.co_varnames, *code.co_cellvars):
        raise TypeError(f"{code.co_name}() has no variable {_VARIABLE}")
    _serving.add(code)
    return function


def finder() -> Callable[[Request], str]:
    """Look at all threads now, and at all greenlets if need be.

    Returns:
        A function that returns the innermost frames of a request, formatted as in a traceback. These are the frames in
        which the request runs or waits, or those of its thread where neither is known. Our own frames are left out.
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
        frames = [one for one in frames if not _is_of(one[0], _OURS)] or frames
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
    """Note what each function that serves a request has called."""
    for number, (frame, _) in enumerate(frames):
        if frame.f_code in _serving and (request := frame.f_locals.get(_VARIABLE)) is not None:
            found[id(request)] = _without_handler(frames[number + 1 :]) or frames[number:]


def _without_handler(frames: list[tuple[FrameType, int]]) -> list[tuple[FrameType, int]]:
    """Return the frames without Gunicorn's signal handler, where that has interrupted them."""
    for number, (frame, _) in enumerate(frames):
        if _is_of(frame, "gunicorn.workers."):
            return frames[:number]
    return frames


def _is_of(frame: FrameType, package: str) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(package)


def _awaited(coroutine: Any) -> Iterator[tuple[FrameType, int]]:
    """Yield the frames in which a suspended coroutine waits, the innermost last, but not the coroutine's own."""
    awaited = getattr(coroutine, "cr_await", None)
    while awaited is not None:
        # A coroutine has cr_frame, and a generator that stands for one has gi_frame. What wraps a future has neither.
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is None:
            return
        yield frame, frame.f_lineno or 0
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)


def _greenlet_frames() -> Iterator[FrameType]:
    """Yield the frames of all suspended greenlets, which only the garbage collector knows."""
    greenlet = sys.modules["greenlet"].greenlet
    for thing in gc.get_objects():
        if isinstance(thing, greenlet) and (frame := thing.gr_frame) is not None:
            yield frame
