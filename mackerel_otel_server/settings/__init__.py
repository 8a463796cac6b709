"""The environment becomes one frozen Settings, or an error that lists every problem at once.

Nobody else in this package reads ``os.environ``. The variables are those of the OpenTelemetry specification
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/) wherever it has one; ``catalogue``
has them all. ``origins`` is for the command line only, and no part of a worker.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Final

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.catalogue import MACKEREL_ENDPOINT
from mackerel_otel_server.settings.destination import API_KEY_HEADER, read_destination
from mackerel_otel_server.settings.http import read_http_options, read_propagators
from mackerel_otel_server.settings.identity import read_resource_attributes, read_service_name
from mackerel_otel_server.settings.process import (
    disabled_instrumentations,
    is_disabled,
    is_dumb_terminal,
    is_runserver_child,
    semantic_conventions,
    set_semconv_default,
    take_variables_of_process,
    variables,
    wants_colour,
)
from mackerel_otel_server.settings.proxy import read_proxy
from mackerel_otel_server.settings.reader import Reader, seen
from mackerel_otel_server.settings.shown import shown
from mackerel_otel_server.settings.values import Arguments, Settings, SettingsError

__all__ = [
    "API_KEY_HEADER",
    "MACKEREL_ENDPOINT",
    "SAMPLERS",
    "Arguments",
    "Settings",
    "SettingsError",
    "disabled_instrumentations",
    "from_process",
    "is_disabled",
    "is_dumb_terminal",
    "is_runserver_child",
    "read",
    "semantic_conventions",
    "set_semconv_default",
    "take_variables_of_process",
    "wants_colour",
]

SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
_EXPORTERS: Final = ("otlp", "console", "none")
_COMPRESSIONS: Final = ("gzip", "deflate", "none")


def from_process(arguments: Arguments, application: str | None) -> Settings:
    """Read the settings from this process's environment; see read()."""
    return read(variables(), arguments, application, script=sys.argv[0] if sys.argv else "")


def read(
    environ: Mapping[str, str],
    arguments: Arguments | None = None,
    application: str | None = None,
    *,
    script: str = "",
) -> Settings:
    """Understand the environment.

    Args:
        environ: The variables, usually ``os.environ``.
        arguments: What the application gave to ``instrument()``.
        application: What the server was told to serve (``mysite.wsgi:application``), for the service name.
        script: ``sys.argv[0]``, the last resort for the service name.

    Raises:
        SettingsError: With all problems at once.
    """
    source = Reader(environ)
    del environ  # tools that show a traceback with the values of variables would show all of it
    settings = understand(source, arguments or Arguments(), application, script)
    if source.problems:
        raise SettingsError(tuple(source.problems))
    return settings


def understand(source: Reader, arguments: Arguments, application: str | None, script: str | None) -> Settings:
    """Return what can be understood; what cannot is among the source's problems.

    Args:
        source: The variables.
        arguments: As for read().
        application: As for read().
        script: As for read(), None where it is not the process that will be traced.
    """
    source.boolean(catalogue.SDK_DISABLED)
    attributes = read_resource_attributes(source, arguments)
    name = read_service_name(source, attributes, application, script)
    exporters = _exporters(source)
    if "otlp" in exporters:
        _check_protocol(source)
    endpoint, api_key, headers = read_destination(source, wanted="otlp" in exporters)
    sampler, sampler_ratio = _sampler(source)
    context = read_propagators(source)
    # Only checked: the SDK reads the limits itself, and one limit for all of a request is OTEL_EXPORTER_OTLP_TIMEOUT.
    for variable in (*catalogue.LIMITS, catalogue.EXPORT_TIMEOUT):
        source.integer(variable, minimum=0)
    max_queue_size = source.integer(catalogue.MAX_QUEUE_SIZE, minimum=1)
    settings = Settings(
        service_name=name,
        resource_attributes=attributes,
        exporters=exporters,
        endpoint=endpoint,
        api_key=api_key,
        headers=headers,
        proxy=read_proxy(source, endpoint),
        timeout=_timeout(source),
        compression=source.choice(catalogue.COMPRESSION, _COMPRESSIONS),
        certificate=source.file(catalogue.CERTIFICATE),
        client_key=source.file(catalogue.CLIENT_KEY),
        client_certificate=source.file(catalogue.CLIENT_CERTIFICATE),
        sampler=sampler,
        sampler_ratio=sampler_ratio,
        schedule_delay=source.integer(catalogue.SCHEDULE_DELAY, minimum=1),
        max_queue_size=max_queue_size,
        max_export_batch_size=_batch_size(source, max_queue_size),
        shutdown_timeout=source.number(catalogue.SHUTDOWN_TIMEOUT, minimum=0.0),
        http=read_http_options(source, context),
        omitted_attributes=frozenset(source.names(catalogue.OMIT_ATTRIBUTES)),
        warnings=tuple(source.warnings),
    )
    if settings.max_export_batch_size > max_queue_size:
        source.problem(
            catalogue.MAX_EXPORT_BATCH_SIZE.name,
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE={settings.max_export_batch_size} is larger than "
            f"OTEL_BSP_MAX_QUEUE_SIZE={max_queue_size}: lower the first or raise the second",
        )
    return settings


def _exporters(source: Reader) -> tuple[str, ...]:
    variable, value = source.first(catalogue.EXPORTER)
    names = tuple(dict.fromkeys(part.strip().lower() for part in (value or catalogue.EXPORTER.default).split(",")))
    if unknown := [name for name in names if name not in _EXPORTERS]:
        source.problem(
            variable,
            f"{seen(catalogue.EXPORTER, variable, value)}: "
            f"{', '.join(repr(shown(catalogue.EXPORTER, name)) for name in unknown)} is not known; type one or more of "
            f"{', '.join(_EXPORTERS)}",
        )
    return tuple(name for name in names if name in _EXPORTERS and name != "none")


def _check_protocol(source: Reader) -> None:
    name, value = source.first(catalogue.PROTOCOL)
    if value not in ("", catalogue.PROTOCOL.default):
        source.problem(
            name,
            f"{seen(catalogue.PROTOCOL, name, value)} is not supported: Mackerel takes http/protobuf only; "
            f"unset it or type {name}=http/protobuf",
        )


def _sampler(source: Reader) -> tuple[str, float]:
    sampler = source.choice(catalogue.SAMPLER, SAMPLERS)
    ratio = float(catalogue.SAMPLER_ARG.default)
    name, argument = source.first(catalogue.SAMPLER_ARG)
    if argument and sampler.endswith("traceidratio"):
        try:
            ratio = float(argument)
        except ValueError:
            ratio = math.nan
        if not 0.0 <= ratio <= 1.0:
            given = seen(catalogue.SAMPLER_ARG, name, argument)
            source.problem(name, f"{given} is not a number from 0 to 1; for a tenth type 0.1")
    return sampler, ratio


def _timeout(source: Reader) -> float:
    timeout = source.number(catalogue.TIMEOUT, minimum=0.001)
    seconds_at_most = 1000
    if timeout >= seconds_at_most:
        name, _ = source.first(catalogue.TIMEOUT)
        source.warnings.append(
            f"{name}={timeout:g} is taken as seconds, as everywhere in OpenTelemetry Python, not as milliseconds; "
            f"for ten seconds type {name}=10"
        )
    return timeout


def _batch_size(source: Reader, max_queue_size: int) -> int:
    # A smaller queue alone must not be an error.
    default = min(int(catalogue.MAX_EXPORT_BATCH_SIZE.default), max_queue_size)
    return source.integer(catalogue.MAX_EXPORT_BATCH_SIZE, minimum=1, default=default)
