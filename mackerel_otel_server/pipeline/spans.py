"""The spans that this package itself makes of requests and queries: the SDK's, begun and ended in half the time.

The SDK checks and copies what it is given, because it may be given anything: each attribute, the sampler's answer, the
whole span when it ends. Spans of ours are given fresh dicts of text and numbers. Such a span is of a subclass of the
SDK's and has the same fields as one that the SDK has made (a template, one for each tracer). Those fields are private:
where they are not those that are known here, the SDK makes our spans as well.
"""

# ruff: noqa: SLF001 - see above

from __future__ import annotations

import random
import threading
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.trace import Span, Tracer, TracerProvider
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import DEFAULT_TRACE_STATE, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from mackerel_otel_server.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from opentelemetry.context import Context
    from opentelemetry.trace import Link
    from opentelemetry.util.types import AttributeValue

    IsSampled = Callable[[Context | None, SpanContext | None, int], bool]

_OURS: Final = "mackerel_otel_server"
_ENOUGH: Final = 64
"""More attributes than a span of ours begins with."""
# What differs from span to span.
_FIELDS: Final = frozenset(
    {"_name", "_context", "_parent", "_kind", "_attributes", "_events", "_links", "_lock", "_start_time", "_end_time"}
    | {"_resource", "_status", "_span_processor", "_instrumentation_scope"}
)
_PLAIN: Final = frozenset((str, int, bool, float))
_RANDOM: Final = 2
"""The flag of W3C Trace Context, level 2, that newer SDKs set: the trace id is a random number."""
_FLAGS: Final = tuple(map(TraceFlags, range(4)))
_SAMPLED: Final = tuple(TraceFlags(flags | TraceFlags.SAMPLED) for flags in _FLAGS)
_make_context: Final[Any] = tuple.__new__  # what SpanContext's own calls, after a look at the ids
_LATER: Final = {"_events": "max_events", "_links": "max_links"}
"""Fields that most spans of ours never need, and the limits of their lengths."""


class Provider(TracerProvider):
    """The SDK's provider, whose tracers for this package are quicker.

    Args:
        is_sampled: Answers as the sampler does.
        arguments: Those of the SDK's provider.
    """

    def __init__(self, is_sampled: IsSampled, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._is_sampled = is_sampled

    def get_tracer(self, instrumenting_module_name: str, *args: Any, **kwargs: Any) -> trace.Tracer:
        """Return a tracer; see the SDK."""
        tracer = super().get_tracer(instrumenting_module_name, *args, **kwargs)
        if instrumenting_module_name.startswith(_OURS) and isinstance(tracer, Tracer):
            try:
                return _QuickTracer(tracer, self._is_sampled)
            except Exception:
                log.debug("the SDK's spans have other fields than those known here", exc_info=True)
        return tracer


class _QuickTracer(trace.Tracer):
    """Begin spans whose attributes are a fresh dict of str, int, bool and float that the span may keep."""

    def __init__(self, tracer: Tracer, is_sampled: IsSampled) -> None:
        self._tracer = tracer
        self._is_sampled = is_sampled
        # As the SDK's start_span() makes it, but without starting it: no processor sees it.
        template = _Template(
            name="",
            context=SpanContext(1, 1, is_remote=False),
            resource=tracer.resource,
            span_processor=tracer.span_processor,
            limits=tracer._span_limits,
            instrumentation_info=tracer.instrumentation_info,
            instrumentation_scope=tracer._instrumentation_scope,
            attributes={"a": "b"},
        )
        attributes: Any = template._attributes
        if not (vars(template).keys() >= _FIELDS and vars(attributes).keys() >= {"_dict", "_lock", "maxlen"}):
            raise AttributeError(f"{sorted(vars(template))}, {sorted(vars(attributes))}")
        ids = (1, 1, False, _FLAGS[0], DEFAULT_TRACE_STATE, True)
        if tuple(template._context or ()) != ids:
            raise AttributeError(f"{template._context!r} holds something else")
        limits = template._limits
        if limits.max_span_attribute_length is not None or (limits.max_span_attributes or _ENOUGH) < _ENOUGH:
            raise ValueError("the attributes of each span are to be cut")
        self._template = {name: value for name, value in vars(template).items() if name not in _LATER}
        self._attributes_class = type(attributes)
        self._attributes_template = vars(attributes)
        self._dict: Any = type(attributes._dict)
        self._on_start = tracer.span_processor.on_start
        probe = tracer.id_generator
        self._random = _RANDOM if getattr(probe, "is_trace_id_random", lambda: False)() else 0

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
        # An empty context, which is that of most requests, has no span.
        parent = None if context is not None and not context else trace.get_current_span(context).get_span_context()
        if parent is not None and parent.is_valid:
            trace_id = parent.trace_id
            trace_state = parent.trace_state
            flags = parent.trace_flags & self._random
        else:
            parent = None
            trace_id = random.getrandbits(128) or 1
            trace_state = None
            flags = self._random
        span_id = random.getrandbits(64) or 1
        if not self._is_sampled(context, parent, trace_id):
            return NonRecordingSpan(SpanContext(trace_id, span_id, False, _FLAGS[flags], trace_state))
        of_span: Any = object.__new__(self._attributes_class)
        of_span.__dict__.update(self._attributes_template)
        of_span._dict = attributes if type(attributes) is self._dict else self._dict(attributes or {})
        of_span._lock = threading.Lock()
        span = object.__new__(_QuickSpan)
        fields = span.__dict__
        fields.update(self._template)
        fields["_name"] = name
        fields["_context"] = _make_context(
            SpanContext,
            (
                trace_id,
                span_id,
                False,
                _SAMPLED[flags],
                DEFAULT_TRACE_STATE if trace_state is None else trace_state,
                True,
            ),
        )
        fields["_parent"] = parent
        fields["_kind"] = kind
        fields["_attributes"] = of_span
        fields["_lock"] = threading.Lock()
        fields["_start_time"] = time_ns() if start_time is None else start_time
        self._on_start(span, context)
        return span

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        return self._tracer.start_as_current_span(*args, **kwargs)


class _Template(Span):
    """A span of the SDK, which has no way to make one but to start it."""


class _QuickSpan(Span):
    """A span of the SDK whose last steps are shorter; anything unusual goes the SDK's way."""

    def __getattr__(self, name: str) -> Any:
        """Make a list of events or links when it is asked for."""
        if name not in _LATER:
            raise AttributeError(name)
        # Of several threads that ask at once, all get the first one's.
        return vars(self).setdefault(name, BoundedList(getattr(self._limits, _LATER[name])))

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        of_span: Any = self._attributes
        with self._lock:
            if key and type(value) in _PLAIN and self._end_time is None and len(of_span._dict) < _ENOUGH:
                of_span._dict[key] = value
                return
        super().set_attribute(key, value)

    def end(self, end_time: int | None = None) -> None:
        of_span: Any = self._attributes
        with self._lock:
            is_first = self._end_time is None
            if is_first:
                self._end_time = time_ns() if end_time is None else end_time
                of_span._immutable = True
        if not is_first:
            super().end(end_time)  # which logs it
            return
        # The span itself, not a copy: it does not change any more.
        self._span_processor.on_end(self)
