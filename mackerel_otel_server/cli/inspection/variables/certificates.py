"""The certificates, tried as the pipeline does it when it opens its first connection."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from mackerel_otel_server.cli.inspection.findings import Finding
from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mackerel_otel_server.settings import Settings
    from mackerel_otel_server.settings.catalogue import Variable
    from mackerel_otel_server.settings.reader import Reader

_FOLLOWS = "no span is sent: the connection cannot be opened"
_ALL = (catalogue.CERTIFICATE, catalogue.CLIENT_CERTIFICATE, catalogue.CLIENT_KEY)


def findings(source: Reader, settings: Settings) -> Iterator[Finding]:
    """Look at the files; one that cannot be opened is told of by settings."""
    typed = [variable for variable in _ALL if source.text(variable)]
    if not typed or "otlp" not in settings.exporters or _name(source, catalogue.ENDPOINT) in source.wrong:
        return
    if not settings.endpoint.lower().startswith("https:"):
        yield Finding(
            "WARN",
            f"{', '.join(_name(source, one) for one in typed)} has no effect: the endpoint's URL is not https",
            "spans are sent unencrypted",
            f"unset it, or type an https URL in {source.first(catalogue.ENDPOINT)[0]}",
        )
        return
    yield from _authorities(source, settings)
    yield from _client(source, settings)


def _authorities(source: Reader, settings: Settings) -> Iterator[Finding]:
    name, file = source.first(catalogue.CERTIFICATE)
    if not file or name in source.wrong:
        return
    if error := _refused(replace(settings, client_certificate=None, client_key=None)):
        yield Finding(
            "FAIL",
            f"{name}={file!r} holds no certificate authorities that can be used ({error})",
            _FOLLOWS,
            "name a PEM file, which has lines with BEGIN CERTIFICATE in it, of the authority that has signed the "
            "endpoint's certificate, or unset it for those of this machine",
        )


def _client(source: Reader, settings: Settings) -> Iterator[Finding]:
    name, file = source.first(catalogue.CLIENT_CERTIFICATE)
    key_name, key = source.first(catalogue.CLIENT_KEY)
    if key and not file:
        yield Finding(
            "WARN",
            f"{key_name} is set, and no client certificate",
            "it has no effect: none is shown to the endpoint",
            f"set {catalogue.CLIENT_CERTIFICATE.names[-1]} to its PEM file, or unset {key_name}",
        )
    if not file or name in source.wrong or key_name in source.wrong:
        return
    if error := _refused(replace(settings, certificate=None)):
        seen = f"{name}={file!r} and {key_name}={key!r} are" if key else f"{name}={file!r}, without {key_name}, is"
        yield Finding(
            "FAIL",
            f"{seen} no client certificate with its key ({error})",
            _FOLLOWS,
            f"name the certificate's PEM file in {name}, and in {key_name} that of its private key, without a password",
        )


def _name(source: Reader, variable: Variable) -> str:
    return source.first(variable)[0]


def _refused(settings: Settings) -> str:
    """Return why the pipeline cannot use the files."""
    from mackerel_otel_server.pipeline.connection import tls_context

    try:
        tls_context(settings)
    except (OSError, ValueError) as error:
        # OpenSSL's own words, without the place in CPython's source.
        return re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)", "", str(error))
    return ""
