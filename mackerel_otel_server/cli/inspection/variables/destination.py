"""The endpoint, and the certificates for the connection to it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding, fail, warn
from mackerel_otel_server.settings import catalogue
from mackerel_otel_server.settings.destination import TRACES_PATH, is_to_mackerel
from mackerel_otel_server.settings.urls import split_or_none, with_path, without_credentials, without_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mackerel_otel_server.settings import Settings
    from mackerel_otel_server.settings.reader import Reader

_GRPC_PORT: Final = 4317
"""https://opentelemetry.io/docs/specs/otlp/#otlpgrpc-default-port"""
_FOLLOWS: Final = "no span is sent: the connection cannot be opened"
_, _TRACES, _ALL_SIGNALS = catalogue.ENDPOINT.names


def collector(source: Reader, settings: Settings) -> str | None:
    """Return the variable that names a Collector, None where the spans go to Mackerel or nowhere."""
    name, endpoint = source.first(catalogue.ENDPOINT)
    is_collector = "otlp" in settings.exporters and not is_to_mackerel(name, endpoint, split_or_none(endpoint))
    return name if is_collector else None


def findings(source: Reader, settings: Settings) -> Iterator[Finding]:
    """Look for what is correct by itself, and probably not what was meant."""
    yield from _endpoint(source, settings)
    yield from _certificates(source, settings)


def _endpoint(source: Reader, settings: Settings) -> Iterator[Finding]:
    name, typed = source.first(catalogue.ENDPOINT)
    parts = split_or_none(settings.endpoint)
    if not typed or name in source.wrong or parts is None or "otlp" not in settings.exporters:
        return
    shown = without_credentials(typed)
    given = f"{name}={shown!r}"
    base = without_path(shown, TRACES_PATH)
    if parts.path.rstrip("/").endswith(TRACES_PATH * 2):
        yield fail(
            f"{given} ends with {TRACES_PATH}, which is added to it"
            if name == _ALL_SIGNALS
            else f"{given} ends with {TRACES_PATH} twice",
            f"spans are sent to {settings.shown_endpoint}, where nobody takes them",
            f"type {name}={base if name == _ALL_SIGNALS else with_path(base, TRACES_PATH)}",
        )
    elif name == _TRACES and parts.path in ("", "/"):
        yield warn(
            f"{given} has no path, and nothing is added to it",
            "spans are sent to /, where a Collector takes none",
            f"type {name}={with_path(shown, TRACES_PATH)}"
            + ("" if parts.query else f", or {_ALL_SIGNALS}={shown.rstrip('/')}"),
        )
    if parts.port == _GRPC_PORT:
        yield warn(
            f"{given} names port {_GRPC_PORT}, which is that of OTLP over gRPC",
            "spans are sent over http, which such a port does not take",
            f"type {name}={(shown if name != _ALL_SIGNALS else base).replace(f':{_GRPC_PORT}', ':4318')}",
        )


def _certificates(source: Reader, settings: Settings) -> Iterator[Finding]:
    # They are loaded as the pipeline does it. Settings has a problem for a file that cannot be opened.
    name, file = source.first(catalogue.CERTIFICATE)
    own_name, own = source.first(catalogue.CLIENT_CERTIFICATE)
    key_name, key = source.first(catalogue.CLIENT_KEY)
    endpoint, _ = source.first(catalogue.ENDPOINT)
    typed = [one for one, value in ((name, file), (own_name, own), (key_name, key)) if value]
    if not typed or "otlp" not in settings.exporters or endpoint in source.wrong:
        return
    if not settings.endpoint.lower().startswith("https:"):
        yield warn(
            f"{', '.join(typed)} has no effect: the endpoint's URL is not https",
            "spans are sent unencrypted",
            f"unset it, or type an https URL in {endpoint}",
        )
        return
    if file and name not in source.wrong and (error := _refused(replace(settings, client_certificate=None))):
        yield fail(
            f"{name}={file!r} holds no certificate authorities that can be used ({error})",
            _FOLLOWS,
            "name a PEM file, which has lines with BEGIN CERTIFICATE in it, of the authority that has signed the "
            "endpoint's certificate, or unset it for those of this machine",
        )
    if key and not own:
        yield warn(
            f"{key_name} is set, and no client certificate",
            "it has no effect: none is shown to the endpoint",
            f"set {own_name} to its PEM file, or unset {key_name}",
        )
    if own and not {own_name, key_name} & source.wrong and (error := _refused(replace(settings, certificate=None))):
        seen = (
            f"{own_name}={own!r} and {key_name}={key!r} are" if key else f"{own_name}={own!r}, without {key_name}, is"
        )
        yield fail(
            f"{seen} no client certificate with its key ({error})",
            _FOLLOWS,
            f"name the certificate's PEM file in {own_name}, and in {key_name} that of its private key, without a "
            "password",
        )


def _refused(settings: Settings) -> str:
    """Return why the pipeline cannot use the files."""
    from mackerel_otel_server.pipeline.connection import tls_context

    try:
        tls_context(settings)
    except (OSError, ValueError) as error:
        # OpenSSL's own words, without the place in CPython's source.
        return re.sub(r"^\[[^]]*\] | \(_ssl\.c:\d+\)", "", str(error))
    return ""
