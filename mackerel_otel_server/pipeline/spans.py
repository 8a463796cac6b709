"""The spans that this package itself makes of requests and queries: the SDK's, begun and ended in a third of the time.

The SDK checks and copies what it is given, because it may be given anything: each attribute, the sampler's answer, the
whole span when it ends. Spans of ours are given fresh dicts of text and numbers. Such a span is of a subclass of the
SDK's and has the same fields as one that the SDK has made (a template); what all of them have in common belongs to the
class, and what most never need is made when it is asked for. Those fields are private: where they are not those that
are known here, the SDK makes our spans as well.

No lock is taken where nothing unusual is done: a signal handler may end the very span that it has interrupted.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import random
import threading
from operator import attrgetter
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import Span, SpanLimits, SynchronousMultiSpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import DEFAULT_TRACE_STATE, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Link
    from opentelemetry.util.types import AttributeValue

    IsSampled = Callable[[Context | None, SpanContext | None, int], bool]

_OURS: Final = "mackerel_otel_server"
_ENOUGH: Final = 64
"""More attributes than a span of ours begins with."""
# What differs from span to span.
_FIELDS: Final = frozenset(
    {"_name", "_context", "_parent", "_kind", "_attributes", "_events", "_links", "_lock", "_start_time", "_end_time"}
    | {"_resource", "_status", "_span_processor", "_instrumentation_scope", "_instrumentation_info"}
)
_PLAIN: Final = frozenset((str, int, bool, float))
_RANDOM: Final = 2
"""The flag of W3C Trace Context, level 2, that newer SDKs set: the trace id is a random number."""
_FLAGS: Final = tuple(map(TraceFlags, range(4)))
_SAMPLED: Final = tuple(TraceFlags(flags | TraceFlags.SAMPLED) for flags in _FLAGS)
_make_context: Final[Any] = tuple.__new__  # what SpanContext's own calls, after a look at the ids
_make_span: Final[Any] = object.__new__
_random_bits: Final = random.getrandbits


class Provider(TracerProvider):
    """The SDK's provider, whose tracers for this package are quicker.

    Args:
        is_sampled: Answers as the sampler does.
        arguments: Those of the SDK's provider.
    """

    def __init__(self, is_sampled: IsSampled, **arguments: Any) -> None:
        super().__init__(active_span_processor=_Processors(), **arguments)
        self._is_sampled = is_sampled
        self._span_class: type[QuickSpan] | None = None

    def get_tracer(self, instrumenting_module_name: str, *args: Any, **kwargs: Any) -> trace.Tracer:
        """Return a tracer; see the SDK."""
        tracer = super().get_tracer(instrumenting_module_name, *args, **kwargs)
        if instrumenting_module_name.startswith(_OURS) and isinstance(tracer, Tracer):
            try:
                if self._span_class is None:
                    self._span_class = _span_class(tracer)
                return _QuickTracer(tracer, self._span_class, self._is_sampled)
            except Exception:
                log.debug("the SDK's spans have other fields than those known here", exc_info=True)
        return tracer


class _Processors(SynchronousMultiSpanProcessor):
    """The SDK's, but as long as there is one processor, there is nothing between the spans and that one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._count = 0

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        super().add_span_processor(span_processor)
        self._count += 1
        if self._count == 1:
            self.on_start = span_processor.on_start  # type: ignore[method-assign]
            self.on_end = span_processor.on_end  # type: ignore[method-assign]
        else:
            vars(self).pop("on_start", None)
            vars(self).pop("on_end", None)


def _span_class(tracer: Tracer) -> type[QuickSpan]:
    """Return the class of the spans of a provider's tracers. It holds the fields that all these spans have in common.

    Raises:
        Exception: The SDK's spans have other fields than those known here, or are to be cut.
    """
    # As the SDK's start_span() makes it, but without starting it: no processor sees it.
    template = _Template(
        name="",
        context=SpanContext(1, 1, is_remote=False),
        resource=tracer.resource,
        span_processor=tracer.span_processor,
        limits=tracer._span_limits,
    )
    attributes: Any = template._attributes
    if not (vars(template).keys() >= _FIELDS and vars(attributes).keys() >= {"_dict", "_immutable", "dropped"}):
        raise AttributeError(f"{sorted(vars(template))}, {sorted(vars(attributes))}")
    ids = (1, 1, False, _FLAGS[0], DEFAULT_TRACE_STATE, True)
    if tuple(template._context or ()) != ids:
        raise AttributeError(f"{template._context!r} holds something else")
    limits = template._limits
    if limits.max_span_attribute_length is not None or (limits.max_span_attributes or _ENOUGH) < _ENOUGH:
        raise ValueError("the attributes of each span are to be cut")
    fields = {name: value for name, value in vars(template).items() if name not in _LATER}
    return type(QuickSpan.__name__, (QuickSpan,), {**fields, "_attributes_class": type(attributes)})


class _QuickTracer(trace.Tracer):
    """Begin spans whose attributes are a fresh dict of str, int, bool and float that the span may keep."""

    def __init__(self, tracer: Tracer, span_class: type[QuickSpan], is_sampled: IsSampled) -> None:
        self._tracer = tracer
        self._span_class = span_class
        self._is_sampled = is_sampled
        self._scope = tracer._instrumentation_scope
        self._info = tracer.instrumentation_info
        self._processor = tracer.span_processor
        self._random = _RANDOM if getattr(tracer.id_generator, "is_trace_id_random", lambda: False)() else 0

    def start_span(  # noqa: PLR0913, PLR0917 - the API's parameters
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Mapping[str, Any] | None = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        if links or not record_exception or not set_status_on_exception:
            return self._tracer.start_span(
                name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
            )
        flags = self._random
        # An empty context, which is that of most requests, has no span.
        parent = None if context is not None and not context else trace.get_current_span(context).get_span_context()
        if parent is not None and parent.is_valid:
            trace_id = parent.trace_id
            trace_state = parent.trace_state
            flags &= parent.trace_flags
        else:
            parent = None
            trace_id = _random_bits(128) or 1
            trace_state = DEFAULT_TRACE_STATE
        span_id = _random_bits(64) or 1
        if not self._is_sampled(context, parent, trace_id):
            return NonRecordingSpan(SpanContext(trace_id, span_id, False, _FLAGS[flags], trace_state))
        span: QuickSpan = _make_span(self._span_class)
        span._context = _make_context(SpanContext, (trace_id, span_id, False, _SAMPLED[flags], trace_state, True))
        span._name = name
        span._parent = parent
        span._kind = kind
        span._attributes = attributes if type(attributes) is dict else dict(attributes or {})
        span._instrumentation_scope = self._scope
        span._instrumentation_info = self._info
        span._is_open = True
        span._start_time = time_ns() if start_time is None else start_time
        self._processor.on_start(span, context)
        return span

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.start_as_current_span(*args, **kwargs)


class _Template(Span):
    """A span of the SDK, which has no way to make one but to start it."""


class QuickSpan(Span):
    """A span of the SDK whose usual steps are shorter; anything unusual goes the SDK's way."""

    _attributes: Any  # a dict as long as nothing unusual is in it
    _attributes_class: Any
    _is_open: bool
    # The SDK's are functions of Python.
    kind = property(attrgetter("_kind"))
    parent = property(attrgetter("_parent"))
    resource = property(attrgetter("_resource"))
    context = property(attrgetter("_context"))

    def __getattr__(self, name: str) -> Any:
        """Make a list of events or links, or the lock, when it is asked for."""
        make = _LATER.get(name)
        if make is None:
            raise AttributeError(name)
        # Of several threads that ask at once, all get the first one's.
        return vars(self).setdefault(name, make(self._limits))

    def get_span_context(self) -> SpanContext:
        """Return the ids."""
        return self._context  # type: ignore[return-value]

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        """Set one; see the API."""
        attributes = self._attributes
        if (
            type(value) in _PLAIN
            and type(key) is str
            and key
            and type(attributes) is dict
            and len(attributes) < _ENOUGH
            and self._end_time is None
        ):
            attributes[key] = value
            if attributes is self._attributes:
                return
            # Another thread had something unusual to set.
        self._be_usual()
        super().set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several; see the API."""
        self._be_usual()
        super().set_attributes(attributes)

    def _be_usual(self) -> None:
        """Have the SDK's own attributes, which check, copy and count."""
        attributes = self._attributes
        if type(attributes) is not dict:
            return
        limits = self._limits
        self._attributes = usual = self._attributes_class(
            limits.max_span_attributes, attributes, immutable=False, max_value_len=limits.max_span_attribute_length
        )
        # What another thread has set meanwhile.
        usual._dict.update([item for item in attributes.items() if item[0] not in usual._dict])

    def update_name(self, name: str) -> None:
        """Rename the span; see the API."""
        if self._end_time is None:
            self._name = name
        else:
            super().update_name(name)

    def end(self, end_time: int | None = None) -> None:
        """End the span, the first time this is called; see the API."""
        try:
            # One step: whoever does it ends the span, be it a thread or a signal handler.
            del self._is_open
        except AttributeError:
            if self._end_time is not None:
                super().end(end_time)  # which logs it
            return
        self._end_time = time_ns() if end_time is None else end_time
        if type(self._attributes) is not dict:
            self._attributes._immutable = True
        # The span itself, not a copy: it does not change any more.
        self._span_processor.on_end(self)


_LATER: Final[dict[str, Callable[[SpanLimits], Any]]] = {
    "_events": lambda limits: BoundedList(limits.max_events),
    "_links": lambda limits: BoundedList(limits.max_links),
    # A signal handler may ask for the lock while the thread that it has interrupted holds it.
    "_lock": lambda _limits: threading.RLock(),
}
"""Fields that most spans of ours never need."""
