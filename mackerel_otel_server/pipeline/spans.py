"""The spans that this package makes of requests and queries: the SDK's spans, begun and ended in a third of the time.

The SDK checks and copies what it is given, because it may be given anything: each attribute, the sampler's answer, the
whole span when it ends. Spans of ours are given fresh dicts of text and numbers. Such a span is of a subclass of the
SDK's and has the same fields as one that the SDK has made (the template). Fields whose values are the same for all
spans belong to the class, and a field that most spans never need is made when somebody asks for it. All these fields
are private. Where the installed SDK has others, the SDK makes our spans as well; _span_class() finds that out.

No lock is taken where nothing unusual is done: a signal handler may end the very span that it has interrupted.
"""

# ruff: noqa: SLF001 - this file and the encoder are the two that use the SDK's private fields

from __future__ import annotations

import random
import threading
from operator import attrgetter
from time import time_ns
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, SpanLimits, SynchronousMultiSpanProcessor, Tracer, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import DEFAULT_TRACE_STATE, NonRecordingSpan, SpanContext, SpanKind, TraceFlags

from mackerel_otel_server.pipeline import unknown_sdk
from mackerel_otel_server.process.log import log

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
# The fields of a span that are set below.
_FIELDS: Final = frozenset(
    {"_name", "_context", "_parent", "_kind", "_attributes", "_events", "_links", "_lock", "_start_time", "_end_time"}
    | {"_resource", "_status", "_span_processor", "_instrumentation_scope", "_instrumentation_info"}
)
_FIELDS_OF_ATTRIBUTES: Final = frozenset({"_dict", "_immutable", "dropped"})
_LONGEST_WAIT: Final = 0.05
"""Seconds. Nobody holds a span's lock for longer than microseconds, unless a signal handler has interrupted them."""
_PLAIN: Final = frozenset((str, int, bool, float))
_RANDOM: Final = 2
"""The flag of W3C Trace Context, level 2, that newer SDKs set: the trace id is a random number."""
_FLAGS: Final = tuple(map(TraceFlags, range(4)))
_SAMPLED: Final = tuple(TraceFlags(flags | TraceFlags.SAMPLED) for flags in _FLAGS)
_make_context: Final[Any] = tuple.__new__  # what SpanContext's own calls, after a look at the ids
_make_span: Final[Any] = object.__new__
_random_bits: Final = random.getrandbits


class Provider(TracerProvider):
    """The SDK's provider, but the tracers of this package are quicker. ``is_sampled`` answers as the sampler does."""

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
            except _LimitsError:
                log.debug("the attributes of each span are to be cut, which the SDK does")
            except Exception as error:
                unknown_sdk.say_once(f"{type(error).__name__}: {error}")
        return tracer


def sdk_difference() -> str | None:
    """Return which private fields the installed SDK's spans lack; None where they have all that this file uses."""
    # The sampler is given, because the SDK would read, and judge, the one in the environment.
    provider = TracerProvider(sampler=ALWAYS_ON, resource=Resource.get_empty(), shutdown_on_exit=False)
    tracer = provider.get_tracer(__name__)
    # With OTEL_SDK_DISABLED, the tracer is one that does nothing.
    if isinstance(tracer, Tracer):
        try:
            _QuickTracer(tracer, _span_class(tracer), lambda *_: True)
        except _LimitsError:
            return None
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return None


def give_resource(span: Span, resource: Resource) -> bool:
    """Make a span, which has just begun, one of another resource than its provider's.

    Returns:
        Whether the span has that resource now.
    """
    span._resource = resource
    if span.resource is resource:
        return True
    unknown_sdk.say_once("a span does not get its resource from _resource")
    return False


def is_free(span: Any) -> bool:
    """Tell whether a span of OpenTelemetry's SDK can be changed without waiting for ever.

    A signal handler that waits for the calling thread may have interrupted the thread that holds the span's lock.
    """
    lock = getattr(span, "_lock", None)
    if lock is None:
        return True
    if not lock.acquire(timeout=_LONGEST_WAIT):
        return False
    lock.release()
    return True


class _LimitsError(Exception):
    """The operator has set limits that the SDK has to keep."""


class _Processors(SynchronousMultiSpanProcessor):
    """The SDK's list of processors; as long as it has one processor, spans call that processor directly."""

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
        _LimitsError: The attributes of each span are to be cut.
        Exception: The SDK's spans have other fields than those known here.
    """
    # The same call as in the SDK's start_span(). The span is not started, so that no processor sees it.
    template = _Template(
        name="",
        context=SpanContext(1, 1, is_remote=False),
        resource=tracer.resource,
        span_processor=tracer.span_processor,
        limits=tracer._span_limits,
    )
    attributes: Any = template._attributes
    missing = _FIELDS - vars(template).keys() | _FIELDS_OF_ATTRIBUTES - vars(attributes).keys()
    if missing:
        raise AttributeError(f"no {', '.join(sorted(missing))}")
    ids = (1, 1, False, _FLAGS[0], DEFAULT_TRACE_STATE, True)
    if tuple(template._context or ()) != ids:
        raise AttributeError(f"other fields in {template._context!r}")
    limits = template._limits
    if limits.max_span_attribute_length is not None or (limits.max_span_attributes or _ENOUGH) < _ENOUGH:
        raise _LimitsError
    fields = {
        name: value for name, value in vars(template).items() if not isinstance(vars(QuickSpan).get(name), _Later)
    }
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
        # Most requests have an empty context, which has no span.
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
    """A span of the SDK that can be made without a tracer; the SDK forbids that for its own class."""


class _Later:
    """A field that most spans of ours never need; it is made when it is asked for."""

    def __init__(self, make: Callable[[SpanLimits], Any]) -> None:
        self._make = make

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, span: Any, _owner: type | None = None) -> Any:
        if span is None:
            return self
        span.is_plain = False
        # Several threads that ask at once get the same object, which is found without this call from then on.
        return vars(span).setdefault(self._name, self._make(span._limits))


class QuickSpan(Span):
    """A span of the SDK whose usual methods are quicker. Whatever is unusual is left to the SDK's methods."""

    _attributes: Any  # a dict, or the SDK's attributes after something unusual was set
    _attributes_class: Any
    _is_open: bool
    is_plain = True
    """Whether the span has no events and no links, and nobody has asked for them."""
    # Not __getattr__(), with which the interpreter would look for each field of each span in the slowest way.
    _events = _Later(lambda limits: BoundedList(limits.max_events))
    _links = _Later(lambda limits: BoundedList(limits.max_links))
    # A signal handler may ask for the lock while the thread that it has interrupted holds it.
    _lock = _Later(lambda _limits: threading.RLock())
    # The SDK's properties are Python functions; these are not, and quicker.
    kind = property(attrgetter("_kind"))
    parent = property(attrgetter("_parent"))
    resource = property(attrgetter("_resource"))
    context = property(attrgetter("_context"))

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
            # Another thread has replaced the dict meanwhile.
        self._be_usual()
        super().set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        """Set several; see the API."""
        self._be_usual()
        super().set_attributes(attributes)

    def _be_usual(self) -> None:
        """Replace the dict by the SDK's attributes, which check, copy and count."""
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
            # This is one step of the interpreter: of several threads and signal handlers, one ends the span.
            del self._is_open
        except AttributeError:
            if self._end_time is not None:
                super().end(end_time)  # which logs it
            return
        self._end_time = time_ns() if end_time is None else end_time
        if type(self._attributes) is not dict:
            self._attributes._immutable = True
        # The SDK makes a copy for this. None is needed, because the span does not change any more.
        self._span_processor.on_end(self)
