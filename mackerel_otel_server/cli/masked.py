"""The secrets of an environment, and how they are masked in any text, such as an exception's words."""

from __future__ import annotations

import shlex
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.masking import SHORTEST_PART, of_header
from mackerel_otel_server.settings.urls import secrets_of, secrets_of_query

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.settings.masking import Mask


def secrets(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield what no line may show, as it was typed, and without percent-encoding and base64."""
    yield from _of_variables(environ)
    for word in _words(environ.get("GUNICORN_CMD_ARGS", "")):
        # -e NAME=value, --env=NAME=value, -eNAME=value
        name, equals, value = word.removeprefix("--env=").removeprefix("-e").partition("=")
        if equals:
            yield from _of_variables({name: value})


def _of_variables(environ: Mapping[str, str]) -> Iterator[str]:
    for name in catalogue.API_KEY.names:
        yield environ.get(name, "").strip()
    # Most headers and most of a query are no secrets.
    parts: list[str] = []
    for item in (item for name in catalogue.HEADERS.names for item in environ.get(name, "").split(",")):
        parts += of_header(unquote(item.partition("=")[2].strip()))
    for url in (environ.get(name, "").strip() for variable in catalogue.URLS for name in variable.names):
        yield from secrets_of(url)
        parts += secrets_of_query(url)
    yield from (part for part in parts if len(part) >= SHORTEST_PART)


def _words(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError:
        return arguments.split()


def cloaked(data: Any, mask: Mask) -> Any:
    """Replace the secrets in a text, and in all texts of lists, dictionaries and dataclasses.

    Do so before lines are broken, which would part a secret.
    """
    if isinstance(data, str):
        return mask(data)
    if is_dataclass(data) and not isinstance(data, type):
        return replace(data, **{one.name: cloaked(getattr(data, one.name), mask) for one in fields(data)})
    if isinstance(data, dict):
        return {name: cloaked(value, mask) for name, value in data.items()}
    return [cloaked(value, mask) for value in data] if isinstance(data, list | tuple) else data
