"""Who sends the spans: the attributes of the resource, above all the service's name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from mackerel_otel_server.settings.reader import Reader
    from mackerel_otel_server.settings.result import Arguments


def read_resource_attributes(source: Reader, arguments: Arguments) -> dict[str, Any]:
    """Read the attributes. ``OTEL_SERVICE_NAME`` wins over the list, and the arguments of the code win over both."""
    attributes: dict[str, Any] = dict(source.pairs(catalogue.RESOURCE_ATTRIBUTES))
    if name := source.text(catalogue.SERVICE_NAME):
        attributes["service.name"] = name
    for key, value in arguments.as_resource_attributes().items():
        if not isinstance(key, str) or not isinstance(value, str | bool | int | float):
            source.problem(
                "instrument()",
                f"instrument() was given {key!r}={value!r}",
                "a resource attribute needs a name of type str and a value of type str, bool, int or float",
            )
        else:
            attributes[key] = value
    return attributes


def read_service_name(source: Reader, attributes: dict[str, Any], application: str | None, script: str | None) -> str:
    """Return the service's name. Where nobody has given one, guess it, and warn."""
    if name := attributes.get("service.name"):
        return str(name)
    guess, origin = guessed_name(source, application, script)
    attributes["service.name"] = guess
    sent = f"as {guess!r}" if origin else f"under the name of {guess}, as 'mysite' for mysite.wsgi"
    source.warning(
        catalogue.SERVICE_NAME.name,
        "no service name is set",
        f"spans are sent {sent}",
        f"set {catalogue.SERVICE_NAME.name} to the name that Mackerel shall show",
    )
    return guess


def guessed_name(source: Reader, application: str | None, script: str | None) -> tuple[str, str]:
    """Return a name for the service, and where it comes from.

    Where neither the application nor the script is known, the name is a general phrase, and comes from nowhere.
    """
    if name := _top_package(application or ""):
        return name, "the server's application"
    variable, module = source.first(catalogue.DJANGO_SETTINGS)
    if name := _top_package(module):
        return name, variable
    return (catalogue.SERVICE_NAME.default, "") if script is None else (_script_name(script), "the script")


def _top_package(application: str) -> str:
    """Return ``mysite`` for ``mysite.wsgi:application``."""
    return application.partition(":")[0].strip().partition(".")[0]


def _script_name(script: str) -> str:
    path = Path(script)
    name = path.parent.name if path.stem == "__main__" else path.stem
    # "-c" and "-" are no scripts. OpenTelemetry's specification of resources requires this name then.
    return name if name not in ("", "-", "-c") else "unknown_service:python"
