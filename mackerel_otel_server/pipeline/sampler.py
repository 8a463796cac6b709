"""Which spans are recorded: those that the operator's sampler takes, except within an excluded request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from opentelemetry.context import Context, get_value
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import TraceFlags

from mackerel_otel_server.settings.http_options import EXCLUDED

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import SpanContext

    from mackerel_otel_server.settings import Settings

_PARENT_BASED: Final = "parentbased_"


def make_sampler(settings: Settings) -> sampling.Sampler:
    """Return the sampler of ``OTEL_TRACES_SAMPLER``."""
    samplers: dict[str, sampling.Sampler] = {
        "always_on": sampling.ALWAYS_ON,
        "always_off": sampling.ALWAYS_OFF,
        "traceidratio": sampling.TraceIdRatioBased(settings.sampler_ratio),
    }
    sampler = samplers[settings.sampler.removeprefix(_PARENT_BASED)]
    # Within an excluded request, the parent of each span is unsampled. The samplers that ask the parent need no more.
    if settings.sampler.startswith(_PARENT_BASED):
        return sampling.ParentBased(sampler)
    if settings.http.excluded_urls:
        return Unless(lambda context: bool(get_value(EXCLUDED, context)), sampler)
    return sampler


def is_sampled_by(settings: Settings) -> Callable[[Context | None, SpanContext | None, int], bool]:
    """Return a function that decides like the sampler, but quicker: from context, valid parent and trace id."""
    asks_parent = settings.sampler.startswith(_PARENT_BASED)
    except_excluded = not asks_parent and bool(settings.http.excluded_urls)
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


class Unless(sampling.Sampler):
    """Record no span while ``is_dropped`` says so of the span's context; else ask another sampler."""

    def __init__(self, is_dropped: Callable[[Context | None], bool], sampler: sampling.Sampler) -> None:
        self._is_dropped = is_dropped
        self._sampler = sampler

    def should_sample(self, parent_context: Context | None, *args: Any, **kwargs: Any) -> sampling.SamplingResult:
        """Answer; see the SDK."""
        if self._is_dropped(parent_context):
            return sampling.SamplingResult(sampling.Decision.DROP)
        return self._sampler.should_sample(parent_context, *args, **kwargs)

    def get_description(self) -> str:
        """Return the other sampler's description."""
        return self._sampler.get_description()
