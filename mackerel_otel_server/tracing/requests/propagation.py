"""The parent of a request's span: from the request's headers, or a span that is current already.

A client decides what the headers hold. OpenTelemetry's propagators set no limits: a header that is made up for that
purpose keeps their patterns busy for seconds, and they log its text. Therefore propagators get no header that is too
long here, and what they log about a header does not reach the server's log.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Final, TypeVar

from opentelemetry import context, trace
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import NonRecordingSpan, SpanKind

from mackerel_otel_server.process.log import log
from mackerel_otel_server.process.threads import thread_ident

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.context import Context
    from opentelemetry.propagators.textmap import TextMapPropagator

ROOT: Final = context.Context()
"""The context of a request whose headers have none."""

_LONGEST: Final = 8192
"""Characters of a header's value: the limit of https://www.w3.org/TR/baggage/#limits for ``baggage``."""
_SHORT: Final = 55
"""Characters of a ``traceparent`` (https://www.w3.org/TR/trace-context/). A text of this length takes no propagator
long."""
_LONGEST_OF: Final = {"traceparent": _SHORT, "tracestate": 512}
_MOST_MEMBERS: Final = 180
"""Members of a ``baggage`` header, by the same document, and names of headers that a propagator gets to see."""

_propagate: Any = None
"""The module ``opentelemetry.propagate``, whose import fails where OTEL_PROPAGATORS names one that is not installed."""
_known_propagator: TextMapPropagator | None = None
_extracting: dict[int, bool] = {}
"""The threads, by ident, in which propagators run -> whether a header was left out or not understood."""

_Carrier = TypeVar("_Carrier")


def prepare(names: Iterable[str]) -> None:
    """Load the propagators of this process, those of OTEL_PROPAGATORS. Call this after the settings are known."""
    global _propagate, _known_propagator
    from opentelemetry import propagate

    _propagate = propagate
    # A forked process has none of the threads that were at work in its parent.
    _extracting.clear()
    _mend_propagation()
    # The headers that these two read are known, so a request without these headers needs no extraction.
    if set(names) <= {"tracecontext", "baggage"}:
        _known_propagator = propagate.get_global_textmap()
    _keep_quiet()


class BoundedGetter(Getter[_Carrier]):
    """Gives propagators the headers of a request, except those that are too long or no text."""

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
    """Return a header's value with single blanks: runs of blanks cost the patterns of propagators much time."""
    if len(value) > longest or not value.isascii():
        return None
    usable = " ".join(value.split())
    return usable if usable.isprintable() else None


def extract(carrier: Any, getter: BoundedGetter[Any], *, has_headers: bool) -> Context | None:
    """Return the context in the headers of a request; None if there is none.

    Args:
        carrier: Holds the headers.
        getter: Reads them.
        has_headers: Whether there is a ``traceparent`` or a ``baggage``. The usual propagators read nothing else.
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


def has_outer_span() -> bool:
    """Tell whether a server span is current, because a middleware of the user's own has made one.

    A current span that has ended does not count: an earlier request in this thread has left it behind.
    """
    span = trace.get_current_span()
    if span is trace.INVALID_SPAN:
        return False
    if isinstance(span, NonRecordingSpan):
        return True
    return span.is_recording() and getattr(span, "kind", SpanKind.SERVER) is SpanKind.SERVER


def _keep_quiet() -> None:
    """Keep out of the log what propagators write there about a client's headers, because it quotes the client."""
    modules = {type(_propagate.get_global_textmap()).__module__}
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and (name.startswith("opentelemetry.") or name in modules):
            # To add the same filter twice has no effect.
            logger.addFilter(_is_to_be_logged)


def _is_to_be_logged(_record: logging.LogRecord) -> bool:
    thread = thread_ident()
    if thread not in _extracting:
        return True
    _extracting[thread] = True
    return False


def _mend_propagation() -> None:
    """Make ``OTEL_PROPAGATORS=none`` work: OpenTelemetry's propagator returns None then, and nobody expects that."""
    from opentelemetry.propagators.composite import CompositePropagator

    if _propagate.extract({}) is not None:
        return

    class NoPropagator(CompositePropagator):
        def extract(self, carrier: Any, given: Any = None, getter: Any = None) -> Any:  # noqa: ARG002
            return context.get_current() if given is None else given

    _propagate.set_global_textmap(NoPropagator([]))
