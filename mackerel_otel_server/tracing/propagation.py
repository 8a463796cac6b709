"""The context that a request brings along in its headers, within limits that no client can move.

Propagators take headers as they come: their patterns need seconds for what a client makes up for that purpose, and they
log it. So what they get has bounds, and what they say about it does not reach the server's log.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry import context
from opentelemetry.propagators.textmap import Getter

from mackerel_otel_server.log import log
from mackerel_otel_server.native import thread_ident

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator

ROOT: Final = context.Context()
"""The context of a request that brought none along."""

_LONGEST: Final = 8192
"""Characters of a header's value: what https://www.w3.org/TR/baggage/#limits has for ``baggage``."""
_SHORT: Final = 55
"""Characters that no propagator takes long for: a ``traceparent`` of https://www.w3.org/TR/trace-context/."""
_LONGEST_OF: Final = {"traceparent": _SHORT, "tracestate": 512}
_MOST_MEMBERS: Final = 180
"""Members of a ``baggage`` header, by the same document; and headers that a propagator may choose from."""

_propagate: Any = None
"""The module ``opentelemetry.propagate``, whose import fails where OTEL_PROPAGATORS names one that is not installed."""
_known_propagator: TextMapPropagator | None = None
_extracting: dict[int, bool] = {}
"""Threads, by ident, in which propagators run: whether a header was left out or not understood."""

_Carrier = TypeVar("_Carrier")


def prepare(names: Iterable[str]) -> None:
    """Load the propagators of this process; after the settings are known.

    Args:
        names: Those of OTEL_PROPAGATORS.
    """
    global _propagate, _known_propagator
    from opentelemetry import propagate

    _propagate = propagate
    # A process that was forked has none of the threads that were at work then.
    _extracting.clear()
    _mend_propagation()
    # Which headers these two read is known, so that a request without them needs no extraction.
    if set(names) <= {"tracecontext", "baggage"}:
        _known_propagator = propagate.get_global_textmap()
    _keep_quiet()


class BoundedGetter(Getter[_Carrier]):
    """Gives propagators the headers of a request, but for what is longer than it may be or no text."""

    @abstractmethod
    def find(self, carrier: _Carrier, name: str) -> str | None:
        """Return the value of a header, lines of the same name joined with commas; None where there is none."""

    @abstractmethod
    def names(self, carrier: _Carrier) -> list[str]:
        """Return the names of all headers, in lower case."""

    def get(self, carrier: _Carrier, key: str) -> list[str] | None:
        """Return a header's value, if it is within its limits; see the API."""
        value = self.find(carrier, key)
        if value is None:
            return None
        if len(value) <= _SHORT and value.isascii() and value.isprintable():
            return [value]
        name = key.lower()
        usable = _bounded(value, _LONGEST_OF.get(name, _LONGEST))
        if usable is None:
            _extracting[thread_ident()] = True
            return None
        if name == "baggage" and usable.count(",") >= _MOST_MEMBERS:
            usable = ",".join(usable.split(",", _MOST_MEMBERS)[:_MOST_MEMBERS])
        return [usable]

    def keys(self, carrier: _Carrier) -> list[str]:
        """Return the first names; see the API."""
        return self.names(carrier)[:_MOST_MEMBERS]


def _bounded(value: str, longest: int) -> str | None:
    """Return a header's value with single blanks, because propagators' patterns take long for runs of them."""
    if len(value) > longest or not value.isascii():
        return None
    usable = " ".join(value.split())
    return usable if usable.isprintable() else None


def extract(carrier: Any, getter: BoundedGetter[Any], *, has_headers: bool) -> Context | None:
    """Return the context that the request brought along; None for none.

    Args:
        carrier: Holds the headers.
        getter: Reads them.
        has_headers: Whether there is a ``traceparent`` or a ``baggage``, which is all that the usual propagators read.
    """
    if not has_headers and _known_propagator is not None and _propagate.get_global_textmap() is _known_propagator:
        return None
    thread = thread_ident()
    _extracting[thread] = False
    try:
        extracted: Context = _propagate.extract(carrier, ROOT, getter)
    except Exception:
        log.debug("the context of a request cannot be read", exc_info=True)
        return None
    finally:
        is_incomplete = _extracting.pop(thread, False)
    if is_incomplete:
        log.debug("a request's headers about its context are too long, no text, or not understood: these are left out")
    return extracted


def _keep_quiet() -> None:
    """Keep what propagators log about a client's headers, in the client's words, from the log."""
    modules = {type(_propagate.get_global_textmap()).__module__}
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (name.startswith("opentelemetry.") or name in modules):
            # Nothing is done twice: a logger takes a filter once.
            logger.addFilter(_is_to_be_logged)


def _is_to_be_logged(_record: logging.LogRecord) -> bool:
    thread = thread_ident()
    if thread not in _extracting:
        return True
    _extracting[thread] = True
    return False


def _mend_propagation() -> None:
    """Make ``OTEL_PROPAGATORS=none`` work: the library's propagator returns no context then, which nothing expects."""
    from opentelemetry.propagators.composite import CompositePropagator

    if _propagate.extract({}) is not None:
        return

    class NoPropagator(CompositePropagator):
        def extract(self, carrier: Any, given: Any = None, getter: Any = None) -> Any:  # noqa: ARG002
            return context.get_current() if given is None else given

    _propagate.set_global_textmap(NoPropagator([]))
