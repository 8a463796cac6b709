"""Secrets that are known, and how a text that holds one by another way, such as an exception's words, is shown."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote

from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.urls import secrets_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_SHORTEST: Final = 4
_SHORTEST_IN_LIST: Final = 8
"""Most headers and most of a query are no secrets, and a common word shall not vanish from all sentences."""
_URLS: Final = (*catalogue.ENDPOINT.names, *catalogue.HTTPS_PROXY.names, *catalogue.HTTP_PROXY.names)


def secrets(environ: Mapping[str, str]) -> list[str]:
    """Return what no line may show, as it was typed, and without and with percent-encoding."""
    found = [*_of_variables(environ)]
    for word in _words(environ.get("GUNICORN_CMD_ARGS", "")):
        # -e NAME=value, --env=NAME=value, -eNAME=value
        name, equals, value = word.removeprefix("--env=").removeprefix("-e").partition("=")
        if equals:
            found += _of_variables({name: value})
    bare = [unquote(one) for one in found]
    return list(dict.fromkeys([*found, *bare, *(quote(one, safe="", errors="surrogateescape") for one in bare)]))


def _of_variables(environ: Mapping[str, str]) -> Iterator[str]:
    for name in catalogue.API_KEY.names:
        yield environ.get(name, "").strip()
    items = [item for name in catalogue.HEADERS.names for item in environ.get(name, "").split(",")]
    for url in (environ.get(name, "").strip() for name in _URLS):
        yield from secrets_of(url)
        items += url.partition("?")[2].partition("#")[0].split("&")
    for value in (item.partition("=")[2].strip() for item in items):
        # `Basic …` and `Bearer …`: the rest alone, too.
        yield from (one for one in (value, *unquote(value).split()) if len(one) >= _SHORTEST_IN_LIST)


def _words(arguments: str) -> list[str]:
    try:
        return shlex.split(arguments)
    except ValueError:
        return arguments.split()


def cloaked(data: Any, known: Iterable[str]) -> Any:
    """Replace the secrets in a text, and in all texts of lists and dictionaries."""
    return _cloaked(data, sorted((one for one in known if len(one) >= _SHORTEST), key=len, reverse=True))


def _cloaked(data: Any, known: list[str]) -> Any:
    if isinstance(data, str):
        for secret in known:
            data = data.replace(secret, "***")
        return data
    if isinstance(data, dict):
        return {name: _cloaked(value, known) for name, value in data.items()}
    return [_cloaked(value, known) for value in data] if isinstance(data, list | tuple) else data
