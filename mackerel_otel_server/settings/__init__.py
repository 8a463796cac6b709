"""The environment becomes one frozen Settings, or an error that lists every problem at once.

``environment`` has the variables of the process, and ``reader`` makes a value of each. ``api_key``, ``destination``,
``proxy``, ``identity`` and ``http_options`` understand what several variables say together. The end is a ``result`` or
``problems``. ``catalogue`` has every variable: that of the OpenTelemetry specification wherever it has one
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/).

Nobody else in this package reads ``os.environ``. ``origins`` is for the command line only: no worker imports it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.destination import API_KEY_HEADER, read_destination
from mackerel_otel_server.settings.environment import variables
from mackerel_otel_server.settings.http_options import read_http_options, read_propagators
from mackerel_otel_server.settings.identity import read_resource_attributes, read_service_name
from mackerel_otel_server.settings.parts import read_parts
from mackerel_otel_server.settings.problems import Problem, SettingsError, worded
from mackerel_otel_server.settings.proxy import read_proxy
from mackerel_otel_server.settings.reader import Reader, seen
from mackerel_otel_server.settings.result import Arguments, Settings

__all__ = ["API_KEY_HEADER", "Arguments", "Problem", "Settings", "SettingsError", "from_process", "read", "worded"]


def from_process(arguments: Arguments, application: str | None, frameworks: Collection[str] = ()) -> Settings:
    """Read the settings from this process's environment; see read()."""
    script = sys.argv[0] if sys.argv else ""
    return read(variables(), arguments, application, script=script, frameworks=frameworks)


def read(
    environ: Mapping[str, str],
    arguments: Arguments | None = None,
    application: str | None = None,
    *,
    script: str = "",
    frameworks: Collection[str] = (),
) -> Settings:
    """Understand the environment.

    Args:
        environ: The variables, usually ``os.environ``.
        arguments: What the application gave to ``instrument()``.
        application: What the server was told to serve (``mysite.wsgi:application``), for the service name.
        script: ``sys.argv[0]``, the last resort for the service name.
        frameworks: ``FLASK`` for ``OTEL_PYTHON_FLASK_EXCLUDED_URLS``: whose variables of this kind are obeyed.

    Raises:
        SettingsError: With all problems at once.
    """
    source = Reader(environ)
    del environ  # a tool that shows a traceback with the values of local variables would show every secret
    settings = understand(source, arguments or Arguments(), application, script, frameworks)
    if source.problems:
        raise SettingsError(tuple(source.problems))
    return settings


def understand(
    source: Reader, arguments: Arguments, application: str | None, script: str | None, frameworks: Collection[str]
) -> Settings:
    """Return the settings; a value that cannot be understood is a problem of the source, and its default is returned.

    ``source`` has the variables. The other parameters are those of read(), but ``script`` is None in a process that is
    not the one that will be traced.
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
    # These are only checked: the SDK reads the limits itself, and the timeout of a batch has no effect here.
    for variable in (*catalogue.LIMITS, catalogue.EXPORT_TIMEOUT):
        source.integer(variable)
    max_queue_size = source.integer(catalogue.MAX_QUEUE_SIZE)
    settings = Settings(
        service_name=name,
        resource_attributes=attributes,
        exporters=exporters,
        endpoint=endpoint,
        api_key=api_key,
        headers=headers,
        proxy=read_proxy(source, endpoint),
        timeout=_timeout(source),
        compression=source.choice(catalogue.COMPRESSION),
        certificate=source.file(catalogue.CERTIFICATE),
        client_key=source.file(catalogue.CLIENT_KEY),
        client_certificate=source.file(catalogue.CLIENT_CERTIFICATE),
        sampler=sampler,
        sampler_ratio=sampler_ratio,
        schedule_delay=source.integer(catalogue.SCHEDULE_DELAY),
        max_queue_size=max_queue_size,
        max_export_batch_size=_batch_size(source, max_queue_size),
        shutdown_timeout=source.number(catalogue.SHUTDOWN_TIMEOUT),
        spool=source.folder(catalogue.SPOOL, none="none"),
        parts=read_parts(source),
        http=read_http_options(source, context, frameworks),
        omitted_attributes=frozenset(source.names(catalogue.OMIT_ATTRIBUTES)),
        warnings=tuple(source.warnings),
    )
    if settings.max_export_batch_size > max_queue_size:
        source.problem(
            catalogue.MAX_EXPORT_BATCH_SIZE.name,
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE={settings.max_export_batch_size} is larger than "
            f"OTEL_BSP_MAX_QUEUE_SIZE={max_queue_size}",
            "lower the first or raise the second",
        )
    return settings


def _exporters(source: Reader) -> tuple[str, ...]:
    known = catalogue.EXPORTER.words
    value = source.text(catalogue.EXPORTER) or catalogue.EXPORTER.default
    names = tuple(dict.fromkeys(part.strip().lower() for part in value.split(",")))
    unknown = [name for name in names if name not in known]
    source.unknown_word(catalogue.EXPORTER, unknown, "is not known", f"type one or more of {', '.join(known)}")
    return tuple(name for name in names if name in known and name != "none")


def _check_protocol(source: Reader) -> None:
    name, value = source.first(catalogue.PROTOCOL)
    if value not in ("", catalogue.PROTOCOL.default):
        source.problem(
            name,
            f"{seen(catalogue.PROTOCOL, name, value)} is not supported: Mackerel takes http/protobuf only",
            f"unset it or type {name}=http/protobuf",
        )


def _sampler(source: Reader) -> tuple[str, float]:
    sampler = source.choice(catalogue.SAMPLER)
    ratio = float(catalogue.SAMPLER_ARG.default)
    name, argument = source.first(catalogue.SAMPLER_ARG)
    if argument and sampler.endswith("traceidratio"):
        try:
            ratio = float(argument)
        except ValueError:
            ratio = math.nan
        if not 0.0 <= ratio <= 1.0:
            given = seen(catalogue.SAMPLER_ARG, name, argument)
            source.problem(name, f"{given} is not a number from 0 to 1", "for a tenth type 0.1")
    return sampler, ratio


def _timeout(source: Reader) -> float:
    timeout = source.number(catalogue.TIMEOUT)
    seconds_at_most = 1000
    if timeout >= seconds_at_most:
        name, _ = source.first(catalogue.TIMEOUT)
        source.warning(
            name,
            f"{name}={timeout:g} is taken as seconds, as everywhere in OpenTelemetry Python, not as milliseconds",
            "an endpoint that does not answer is waited for that long",
            f"for ten seconds type {name}=10",
        )
    return timeout


def _batch_size(source: Reader, max_queue_size: int) -> int:
    # An operator who makes the queue smaller, and leaves the batch as it is, has made no mistake.
    default = min(int(catalogue.MAX_EXPORT_BATCH_SIZE.default), max_queue_size)
    return source.integer(catalogue.MAX_EXPORT_BATCH_SIZE, default=default)
