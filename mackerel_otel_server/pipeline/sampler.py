"""Which spans are recorded: what the operator's sampler takes, but nothing within an excluded request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context, get_value
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import TraceFlags

from mackerel_otel_server.http_options import EXCLUDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import SpanContext

    from mackerel_otel_server.settings import Settings

_SAMPLERS: Final[dict[str, Callable[[float], sampling.Sampler]]] = {
    "always_on": lambda _ratio: sampling.ALWAYS_ON,
    "always_off": lambda _ratio: sampling.ALWAYS_OFF,
    "traceidratio": sampling.TraceIdRatioBased,
    "parentbased_always_on": lambda _ratio: sampling.ParentBased(sampling.ALWAYS_ON),
    "parentbased_always_off": lambda _ratio: sampling.ParentBased(sampling.ALWAYS_OFF),
    "parentbased_traceidratio": lambda ratio: sampling.ParentBased(sampling.TraceIdRatioBased(ratio)),
}
_ASK_NO_PARENT: Final = ("always_on", "traceidratio")


def make_sampler(settings: Settings) -> sampling.Sampler:
    """Return the sampler of ``OTEL_TRACES_SAMPLER``."""
    sampler = _SAMPLERS[settings.sampler](settings.sampler_ratio)
    # The parent of what an excluded request makes is not sampled, which is enough for all others.
    if settings.sampler in _ASK_NO_PARENT and settings.http.excluded_urls:
        return _ExceptExcluded(sampler)
    return sampler


def is_sampled_by(settings: Settings) -> Callable[[Context | None, SpanContext | None, int], bool]:
    """Return a function that answers as the sampler does, from the parent if it is valid and the trace id."""
    asks_parent = settings.sampler not in (*_ASK_NO_PARENT, "always_off")
    except_excluded = settings.sampler in _ASK_NO_PARENT and bool(settings.http.excluded_urls)
    if settings.sampler.endswith("traceidratio"):
        bound = sampling.TraceIdRatioBased(settings.sampler_ratio).bound
    else:
        bound = sampling.TraceIdRatioBased.TRACE_ID_LIMIT + 1 if settings.sampler.endswith("always_on") else 0

    def is_sampled(context: Context | None, parent: SpanContext | None, trace_id: int) -> bool:
        if asks_parent and parent is not None:
            return bool(parent.trace_flags & TraceFlags.SAMPLED)
        if except_excluded and get_value(EXCLUDED, context):
            return False
        return trace_id & sampling.TraceIdRatioBased.TRACE_ID_LIMIT < bound

    return is_sampled


class UntilClosed(sampling.Sampler):
    """Ask another sampler until tracing has ended in this process, and take no span after that."""

    def __init__(self, sampler: sampling.Sampler, is_closed: Callable[[], bool]) -> None:
        self._sampler = sampler
        self._is_closed = is_closed

    def should_sample(self, *args: Any, **kwargs: Any) -> sampling.SamplingResult:
        """Answer; see the SDK."""
        if self._is_closed():
            return sampling.SamplingResult(sampling.Decision.DROP)
        return self._sampler.should_sample(*args, **kwargs)

    def get_description(self) -> str:
        """Return the other sampler's description."""
        return self._sampler.get_description()


class _ExceptExcluded(sampling.Sampler):
    def __init__(self, sampler: sampling.Sampler) -> None:
        self._sampler = sampler

    def should_sample(self, parent_context: Context | None, *args: Any, **kwargs: Any) -> sampling.SamplingResult:
        if get_value(EXCLUDED, parent_context):
            return sampling.SamplingResult(sampling.Decision.DROP)
        return self._sampler.should_sample(parent_context, *args, **kwargs)

    def get_description(self) -> str:
        return self._sampler.get_description()
