"""The settings in force, each with its origin, as an operator may see them. No worker imports this."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.settings import Arguments, Problem, Settings, understand
from mackerel_otel_server.settings import catalogue as c
from mackerel_otel_server.settings.destination import API_KEY_HEADER
from mackerel_otel_server.settings.identity import guessed_name
from mackerel_otel_server.settings.masking import MARK
from mackerel_otel_server.settings.reader import Reader
from mackerel_otel_server.settings.shown_value import shown
from mackerel_otel_server.settings.urls import without_credentials

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

DEFAULT: Final = "default"
INSTRUMENT: Final = "instrument()"
_NOT_USED: Final = " (not used)"
# The general limit that the SDK takes where a special one is not set.
# https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#attribute-limits
_GENERAL_LIMITS: Final = {
    c.SPAN_ATTRIBUTE_LENGTH: c.ATTRIBUTE_LENGTH,
    c.SPAN_ATTRIBUTE_COUNT: c.ATTRIBUTE_COUNT,
    c.EVENT_ATTRIBUTE_COUNT: c.ATTRIBUTE_COUNT,
    c.LINK_ATTRIBUTE_COUNT: c.ATTRIBUTE_COUNT,
}


@dataclass(frozen=True)
class Shown:
    """One setting."""

    name: str
    """The first name of the variable, or the name of the attribute."""
    value: str
    """The value in force, empty where there is none; a secret is hidden."""
    origin: str
    """The variable as it was typed, ``instrument()``, ``the server's application``, ``the script``, or ``default``."""


@dataclass(frozen=True)
class Description:
    """All settings, and what is wrong with them."""

    settings: tuple[Shown, ...]
    """All, in the order of the catalogue. A value that has a problem is shown as it was typed."""
    problems: tuple[Problem, ...]
    """As in SettingsError. If there is one, nothing is in force."""
    warnings: tuple[Problem, ...]


def describe(
    environ: Mapping[str, str],
    arguments: Arguments | None = None,
    application: str | None = None,
    *,
    script: str | None = None,
    frameworks: Collection[str] = (),
) -> Description:
    """Return what is in force and where it comes from, also when there are problems.

    Args:
        environ: The variables.
        arguments: What the application gives to ``instrument()``.
        application: What the server is told to serve (``mysite.wsgi:application``), where that is known.
        script: ``sys.argv[0]`` of the process that is traced, where that is known.
        frameworks: As for read(). Their variables are shown after those of the catalogue that exclude URLs.
    """
    source, arguments = Reader(environ), arguments or Arguments()
    settings = understand(source, arguments, application, script, frameworks)
    problems, warnings = tuple(source.problems), tuple(source.warnings)
    found: list[Shown] = []
    for variable in c.with_frameworks(frameworks):
        if variable is c.RESOURCE_ATTRIBUTES:
            found += _attributes(source, settings, arguments)
        elif variable is c.SERVICE_NAME:
            name_origin = _service_name_origin(source, arguments, application, script)
            found.append(Shown(variable.name, settings.service_name, name_origin))
        else:
            found.append(Shown(variable.name, *_shown(variable, source, settings)))
    return Description(tuple(found), problems, warnings)


def _shown(variable: c.Variable, source: Reader, settings: Settings) -> tuple[str, str]:
    """Return the value and its origin."""
    if variable is c.API_KEY:
        return _api_key(source, settings)
    name, typed = source.first(variable)
    if not typed:
        return _unset(variable, source, settings)
    if name in source.wrong or variable is c.API_KEY_FILE:
        return shown(variable, typed), name
    return _effective(variable, typed, source, settings), name


def _unset(variable: c.Variable, source: Reader, settings: Settings) -> tuple[str, str]:
    if variable in _GENERAL_LIMITS:
        name, typed = source.first(_GENERAL_LIMITS[variable])
        return (typed, name) if typed else (variable.default, DEFAULT)
    if variable is c.MAX_EXPORT_BATCH_SIZE and str(settings.max_export_batch_size) != variable.default:
        return str(settings.max_export_batch_size), c.MAX_QUEUE_SIZE.name
    if variable is c.ENDPOINT and "otlp" not in settings.exporters:
        return "", DEFAULT
    return variable.default, DEFAULT


def _effective(variable: c.Variable, typed: str, source: Reader, settings: Settings) -> str:
    if variable is c.HEADERS:
        return ",".join(f"{name}={MARK}" for name in source.pairs(variable))
    if variable is c.ENDPOINT:
        return without_credentials(settings.endpoint) or without_credentials(typed) + _NOT_USED
    if variable in (c.HTTPS_PROXY, c.HTTP_PROXY):
        used = settings.proxy and variable is (c.HTTPS_PROXY if settings.endpoint[:5] == "https" else c.HTTP_PROXY)
        return without_credentials(str(settings.proxy)) if used else without_credentials(typed) + _NOT_USED
    if variable is c.EXPORT_TIMEOUT or (variable is c.SAMPLER_ARG and not settings.sampler.endswith("traceidratio")):
        return shown(variable, typed) + _NOT_USED
    values = {
        c.EXPORTER: ",".join(settings.exporters) or "none",
        c.SAMPLER: settings.sampler,
        c.SAMPLER_ARG: f"{settings.sampler_ratio:g}",
        c.TIMEOUT: f"{settings.timeout:g}",
        c.COMPRESSION: settings.compression,
        c.SHUTDOWN_TIMEOUT: f"{settings.shutdown_timeout:g}",
        c.SDK_DISABLED: typed.lower(),
    }
    # Settings has no problem for a wrong word in a list that it only passes on.
    return values.get(variable, shown(variable, typed) if variable.words else typed)


def _api_key(source: Reader, settings: Settings) -> tuple[str, str]:
    for variable in (c.API_KEY, c.API_KEY_FILE):
        name, typed = source.raw(variable)
        if typed.strip():
            break
    else:
        name = source.first(c.HEADERS)[0]
        if API_KEY_HEADER.lower() not in map(str.lower, source.pairs(c.HEADERS)):
            return "", DEFAULT
    return (MARK if settings.api_key or name in source.wrong else f"{MARK} (not sent)"), name


def _attributes(source: Reader, settings: Settings, arguments: Arguments) -> Iterator[Shown]:
    variable = c.RESOURCE_ATTRIBUTES
    given = arguments.as_resource_attributes()
    attributes = {name: value for name, value in settings.resource_attributes.items() if name != "service.name"}
    name, typed = source.first(variable)
    if name in source.wrong or not attributes:
        yield Shown(name, shown(variable, typed), name if typed else DEFAULT)
    for attribute, value in attributes.items():
        yield Shown(str(attribute), str(value), INSTRUMENT if attribute in given else name)


def _service_name_origin(source: Reader, arguments: Arguments, application: str | None, script: str | None) -> str:
    if arguments.as_resource_attributes().get("service.name"):
        return INSTRUMENT
    if source.text(c.SERVICE_NAME):
        return c.SERVICE_NAME.name
    if source.pairs(c.RESOURCE_ATTRIBUTES).get("service.name"):
        return c.RESOURCE_ATTRIBUTES.name
    return guessed_name(source, application, script)[1] or DEFAULT
