"""The environment becomes one frozen Settings, or an error that lists every problem at once.

Nobody else in this package reads ``os.environ``. The variables are those of the OpenTelemetry specification
(https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/) wherever it has one.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

from mackerel_otel_server.http_options import KNOWN_METHODS, HttpOptions

MACKEREL_ENDPOINT: Final = "https://otlp-vaxila.mackerelio.com/v1/traces"
API_KEY_HEADER: Final = "Mackerel-Api-Key"

SAMPLERS: Final = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
_LARGEST: Final = 10**9
"""Of any number: what is larger, or infinite, is a mistake, and more than a thread can wait."""
_EXPORTERS: Final = ("otlp", "console", "none")
_API_KNOWS_NONE: Final = (1, 33)
"""The first release of opentelemetry-api that takes ``OTEL_PROPAGATORS=none``."""
_COMPRESSIONS: Final = ("gzip", "deflate", "none")
_LIMITS: Final = (
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_EVENT_COUNT_LIMIT",
    "OTEL_SPAN_LINK_COUNT_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
)
# RFC 9110, 5.1 and 5.5.
_FIELD_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE: Final = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")


class SettingsError(Exception):
    """The settings cannot be used.

    Attributes:
        problems: One sentence per problem, in a fixed order: what was seen, what was expected, what to type.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What the application's own code gave to ``instrument()``; it wins over the environment."""

    service_name: str | None = None
    service_version: str | None = None
    environment: str | None = None
    resource_attributes: Mapping[str, Any] = field(default_factory=dict)

    def as_resource_attributes(self) -> dict[str, Any]:
        """Return the given arguments under the names of the OpenTelemetry resource attributes."""
        named = {
            "service.name": self.service_name,
            "service.version": self.service_version,
            "deployment.environment.name": self.environment,
        }
        return {**self.resource_attributes, **{name: value for name, value in named.items() if value}}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the pipeline needs to know. Secrets never reach the repr."""

    service_name: str
    resource_attributes: Mapping[str, Any]
    exporters: tuple[str, ...]
    endpoint: str
    api_key: str | None = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    """The http:// URL of the proxy that leads to the endpoint; it may hold credentials."""
    timeout: float
    """Seconds that one request to the endpoint may take."""
    compression: str
    certificate: str | None
    client_key: str | None
    client_certificate: str | None
    sampler: str
    sampler_ratio: float
    schedule_delay: int
    """Milliseconds."""
    max_queue_size: int
    max_export_batch_size: int
    shutdown_timeout: float
    """Seconds that a leaving worker may spend on sending."""
    http: HttpOptions
    omitted_attributes: frozenset[str]
    warnings: tuple[str, ...]

    @property
    def shown_endpoint(self) -> str:
        """The endpoint as a log may show it: without a user's name and password."""
        return _without_credentials(self.endpoint)


def set_semconv_default() -> None:
    """Select the stable semantic conventions for the instrumentations of OpenTelemetry, unless the user chose.

    They read ``OTEL_SEMCONV_STABILITY_OPT_IN`` once, so this runs before any of them is imported.
    """
    if not os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN"):
        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http,database"


def semantic_conventions(signal: str) -> str:
    """Return which attributes the spans of a signal have, ``new``, ``old`` or ``both``.

    ``OTEL_SEMCONV_STABILITY_OPT_IN`` as in https://opentelemetry.io/docs/specs/semconv/db/: ``database`` stands for
    the new ones, ``database/dup`` for both and goes first.

    Args:
        signal: ``database`` or ``http``.
    """
    values = [value.strip() for value in os.environ.get("OTEL_SEMCONV_STABILITY_OPT_IN", "").split(",")]
    return _conventions(values, signal)


def _conventions(values: Sequence[str], signal: str) -> str:
    if f"{signal}/dup" in values:
        return "both"
    return "new" if signal in values else "old"


def is_disabled() -> bool:
    """Tell whether ``OTEL_SDK_DISABLED`` switches tracing off; a value that is no boolean is an error of read()."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def disabled_instrumentations() -> frozenset[str]:
    """Return the entry-point names in ``OTEL_PYTHON_DISABLED_INSTRUMENTATIONS``; ``*`` stands for all."""
    value = os.environ.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "")
    return frozenset(name.strip() for name in value.split(",") if name.strip())


def is_runserver_child() -> bool:
    """Tell whether this is the process that Django's reloader started to serve.

    Django's utils/autoreload.py marks it with ``RUN_MAIN=true``.
    """
    return os.environ.get("RUN_MAIN") == "true"


def wants_colour() -> bool:
    """Tell whether a terminal may be written to in colour: https://no-color.org."""
    return not os.environ.get("NO_COLOR") and not is_dumb_terminal()


def is_dumb_terminal() -> bool:
    """Tell whether the terminal, if there is one, shows lines and nothing else."""
    return os.environ.get("TERM") == "dumb"


def from_process(arguments: Arguments, application: str | None) -> Settings:
    """Read the settings from this process's environment; see read()."""
    return read(os.environ, arguments, application, script=sys.argv[0] if sys.argv else "")


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
    source = _Reader(environ)
    source.boolean("OTEL_SDK_DISABLED")
    resource_attributes = _resource_attributes(source, arguments or Arguments())
    service_name = _service_name(source, resource_attributes, application, script)
    exporters = _exporters(source)
    protocol_name, protocol = source.first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    if "otlp" in exporters and protocol not in ("", "http/protobuf"):
        source.problem(
            f"{protocol_name}={protocol!r} is not supported: Mackerel takes http/protobuf only; "
            f"unset it or type {protocol_name}=http/protobuf"
        )
    endpoint, api_key, headers = _destination(source, wanted="otlp" in exporters)
    sampler, sampler_ratio = _sampler(source)
    propagators = _propagators(source)
    # Only checked: the SDK reads the limits itself, and one limit for all of a request is OTEL_EXPORTER_OTLP_TIMEOUT.
    for name in (*_LIMITS, "OTEL_BSP_EXPORT_TIMEOUT"):
        source.integer(name, 0, minimum=0)
    max_queue_size = source.integer("OTEL_BSP_MAX_QUEUE_SIZE", 2048, minimum=1)
    settings = Settings(
        service_name=service_name,
        resource_attributes=resource_attributes,
        exporters=exporters,
        endpoint=endpoint,
        api_key=api_key,
        headers=headers,
        proxy=_proxy(source, endpoint),
        timeout=_timeout(source),
        compression=source.choice(
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"), _COMPRESSIONS, "gzip"
        ),
        certificate=source.file("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"),
        client_key=source.file("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY"),
        client_certificate=source.file(
            "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"
        ),
        sampler=sampler,
        sampler_ratio=sampler_ratio,
        schedule_delay=source.integer("OTEL_BSP_SCHEDULE_DELAY", 5000, minimum=1),
        max_queue_size=max_queue_size,
        # The specification's default is 512; a smaller queue alone must not be an error.
        max_export_batch_size=source.integer("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", min(512, max_queue_size), minimum=1),
        shutdown_timeout=source.number("MACKEREL_OTEL_SHUTDOWN_TIMEOUT", 5.0, minimum=0.0),
        http=_http_options(source, propagators),
        omitted_attributes=frozenset(source.names("MACKEREL_OTEL_OMIT_ATTRIBUTES")),
        warnings=tuple(source.warnings),
    )
    if settings.max_export_batch_size > max_queue_size:
        source.problem(
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE={settings.max_export_batch_size} is larger than "
            f"OTEL_BSP_MAX_QUEUE_SIZE={max_queue_size}: lower the first or raise the second"
        )
    if source.problems:
        raise SettingsError(tuple(source.problems))
    return settings


class _Reader:
    """Variables of one environment; collects what is wrong with them instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def problem(self, sentence: str) -> None:
        self.problems.append(sentence)

    def get(self, name: str) -> str:
        """Return a variable's value without surrounding white space; empty equals unset."""
        value = self._environ.get(name, "").strip()
        if not _is_text(value):
            sentence = f"{name}={value!r} is not UTF-8 text; type it again"
            if sentence not in self.problems:
                self.problem(sentence)
            return ""
        return value

    def raw(self, name: str) -> str:
        return self._environ.get(name, "")

    def first(self, *names: str) -> tuple[str, str]:
        """Return name and value of the first variable that is set, or the last name and an empty value."""
        for name in names:
            if value := self.get(name):
                return name, value
        return names[-1], ""

    def boolean(self, name: str) -> None:
        value = self.get(name)
        if value.lower() not in ("", "true", "false"):
            self.problem(f"{name}={value!r} is neither true nor false; type one of them, or unset it")

    def integer(self, name: str, default: int, *, minimum: int) -> int:
        return int(self._number(name, default, int, minimum, f"a whole number of at least {minimum}"))

    def number(self, name: str, default: float, *, minimum: float) -> float:
        return float(self._number(name, default, float, minimum, f"a number of at least {minimum:g}"))

    def _number(
        self, name: str, default: float, convert: Callable[[str], float], minimum: float, expected: str
    ) -> float:
        value = self.get(name)
        if not value:
            return default
        try:
            number = convert(value)
        except ValueError:
            number = math.nan
        if not minimum <= number <= _LARGEST:
            self.problem(f"{name}={value!r} is not {expected}; correct it, or unset it for {default:g}")
            return default
        return number

    def choice(self, names: tuple[str, ...], choices: tuple[str, ...], default: str) -> str:
        name, value = self.first(*names)
        if value and value.lower() not in choices:
            self.problem(f"{name}={value!r} is not known; type one of {', '.join(choices)}")
        return value.lower() or default

    def names(self, name: str) -> tuple[str, ...]:
        """Read ``name,name``."""
        return tuple(filter(None, (part.strip() for part in self.get(name).split(","))))

    def pattern(self, *names: str, flags: int = 0) -> re.Pattern[str] | None:
        """Read ``regex,regex`` of all these variables, as OpenTelemetry Python has it: what any of them finds."""
        parts = [(name, part) for name in names for part in self.names(name)]
        if not all([self._is_pattern(name, part) for name, part in dict.fromkeys(parts)]):  # noqa: C419 - all at once
            return None
        return re.compile("|".join(part for _, part in parts), flags) if parts else None

    def _is_pattern(self, name: str, part: str) -> bool:
        try:
            re.compile(part)
        except re.error as error:
            self.problem(f"{name}: {part!r} is not a regular expression ({error}); correct it")
            return False
        return True

    def file(self, *names: str) -> str | None:
        name, value = self.first(*names)
        if not value:
            return None
        try:
            with Path(value).open("rb"):
                return value
        except OSError as error:
            self.problem(f"{name}={value!r} cannot be read ({error.strerror}); name a PEM file that this user may read")
            return None

    def pairs(self, name: str, *, secret: bool = False) -> dict[str, str]:
        """Read ``key=value,key=value`` with percent-encoded values, as the OpenTelemetry specification has it."""
        pairs: dict[str, str] = {}
        for item in filter(None, (part.strip() for part in self.get(name).split(","))):
            key, equals, value = item.partition("=")
            if not equals or not key.strip():
                seen = "an item" if secret else repr(item)
                self.problem(f"{name}: {seen} is not of the form key=value; separate items with commas")
                continue
            name_, value = unquote(key.strip()), unquote(value.strip())
            if secret and not (_FIELD_NAME.fullmatch(name_) and _FIELD_VALUE.fullmatch(value)):
                # It would be refused on its way, in an error that shows it.
                self.problem(f"{name}: the value of {name_!r} holds a line break or a control character; remove it")
                continue
            pairs[name_] = value
        return pairs


def _resource_attributes(source: _Reader, arguments: Arguments) -> dict[str, Any]:
    attributes: dict[str, Any] = dict(source.pairs("OTEL_RESOURCE_ATTRIBUTES"))
    if name := source.get("OTEL_SERVICE_NAME"):
        attributes["service.name"] = name
    for key, value in arguments.as_resource_attributes().items():
        if not isinstance(key, str) or not isinstance(value, str | bool | int | float):
            source.problem(
                f"instrument() was given {key!r}={value!r}: a resource attribute needs a name of type str and "
                "a value of type str, bool, int or float"
            )
            continue
        attributes[key] = value
    return attributes


def _service_name(source: _Reader, attributes: dict[str, Any], application: str | None, script: str) -> str:
    if name := attributes.get("service.name"):
        return str(name)
    guess = (
        _top_package(application or "") or _top_package(source.get("DJANGO_SETTINGS_MODULE")) or _script_name(script)
    )
    attributes["service.name"] = guess
    source.warnings.append(
        f"no service name is set: spans are sent as {guess!r}; "
        "set OTEL_SERVICE_NAME to the name that Mackerel shall show"
    )
    return guess


def _top_package(application: str) -> str:
    """Return ``mysite`` for ``mysite.wsgi:application``."""
    return application.partition(":")[0].strip().partition(".")[0]


def _script_name(script: str) -> str:
    path = Path(script)
    name = path.parent.name if path.stem == "__main__" else path.stem
    # "-c" and "-" are no scripts; the name is the one that OpenTelemetry's resource specification requires then.
    return name if name not in ("", "-", "-c") else "unknown_service:python"


def _exporters(source: _Reader) -> tuple[str, ...]:
    value = source.get("OTEL_TRACES_EXPORTER") or "otlp"
    names = tuple(dict.fromkeys(part.strip().lower() for part in value.split(",")))
    if unknown := [name for name in names if name not in _EXPORTERS]:
        source.problem(
            f"OTEL_TRACES_EXPORTER={value!r}: {', '.join(map(repr, unknown))} is not known; type one or more of "
            f"{', '.join(_EXPORTERS)}"
        )
    return tuple(name for name in names if name in _EXPORTERS and name != "none")


def _destination(source: _Reader, *, wanted: bool) -> tuple[str, str | None, dict[str, str]]:
    """Return the traces URL, the API key that may go there (None: none may), and the further headers."""
    if not wanted:
        return "", None, {}
    name, endpoint = source.first(
        "MACKEREL_OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    parts = _check_endpoint(source, name, endpoint) if endpoint else urlsplit(MACKEREL_ENDPOINT)
    if endpoint and parts and name == "OTEL_EXPORTER_OTLP_ENDPOINT":
        endpoint = endpoint.rstrip("/") + "/v1/traces"

    headers_name = source.first("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS")[0]
    headers = source.pairs(headers_name, secret=True)
    key_in_headers = next((headers.pop(key) for key in list(headers) if key.lower() == API_KEY_HEADER.lower()), "")

    to_mackerel = not endpoint or name == "MACKEREL_OTEL_ENDPOINT" or bool(parts and _is_mackerel(parts))
    if not to_mackerel:
        return endpoint, None, headers
    api_key = _api_key(source, key_in_headers, headers_name)
    if parts and parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        shown = _without_credentials(endpoint)
        source.problem(
            f"{name}={shown!r} would send the API key unencrypted: the key goes over https only (http to this machine "
            f"excepted); type {name}=https{shown[len('http') :]}"
        )
    return endpoint or MACKEREL_ENDPOINT, api_key, headers


def _check_endpoint(source: _Reader, name: str, endpoint: str) -> SplitResult | None:
    path = "" if name == "OTEL_EXPORTER_OTLP_ENDPOINT" else "/v1/traces"
    shown = _without_credentials(endpoint)
    try:
        parts = urlsplit(endpoint)
        parts.port  # noqa: B018 - raises for a port that is no number
    except ValueError as error:
        source.problem(f"{name}={shown!r} is not a URL ({error}); type {name}=http://localhost:4318{path}")
        return None
    if "://" not in endpoint:
        source.problem(f"{name}={shown!r} has no scheme; type {name}=http://{shown} or https://{shown}")
        return None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        source.problem(f"{name}={shown!r} is not an http or https URL; type {name}=http://localhost:4318{path}")
        return None
    if name == "MACKEREL_OTEL_ENDPOINT" and parts.path in ("", "/"):
        source.problem(f"{name}={shown!r} has no path; type the full traces URL: {shown.rstrip('/')}/v1/traces")
    return parts


def _without_credentials(url: str) -> str:
    scheme, separator, rest = url.rpartition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def _is_text(value: str) -> bool:
    # Bytes of the environment that are not UTF-8 arrive as lone surrogates (PEP 383), which no exporter can encode.
    return not any("\ud800" <= character <= "\udfff" for character in value)


def _proxy(source: _Reader, endpoint: str) -> str | None:
    """Return the proxy that the usual variables name for the endpoint, lower case first, as curl and urllib do.

    Never for a loopback address, as in Go's net/http: a key may go there over http, and must not leave the machine.
    """
    try:
        parts = urlsplit(endpoint)
    except ValueError:
        return None  # told already
    scheme, host = parts.scheme, parts.hostname or ""
    if not host or _is_loopback(host):
        return None
    name, proxy = source.first(f"{scheme}_proxy", f"{scheme.upper()}_PROXY")
    excepted = source.first("no_proxy", "NO_PROXY")[1]
    if not proxy or (excepted and _is_excepted(parts, excepted)):
        return None
    url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    try:
        usable = url.scheme == "http" and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        source.problem(
            f"{name} does not name an http proxy (its value is not shown, it may hold a password); type "
            f"{name}=http://host:port, or name {host} in NO_PROXY"
        )
        return None
    return url.geturl()


def _is_excepted(endpoint: SplitResult, excepted: str) -> bool:
    # Only here: it imports http.client, which the doors must not.
    from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined] # typeshed lacks it

    host = endpoint.hostname or ""
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    proxies = {"no": excepted}
    return bool(proxy_bypass_environment(host, proxies) or proxy_bypass_environment(f"{host}:{port}", proxies))


def _is_mackerel(parts: SplitResult) -> bool:
    host = (parts.hostname or "").rstrip(".")
    return host == "mackerelio.com" or host.endswith(".mackerelio.com")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _api_key(source: _Reader, key_in_headers: str, headers_name: str) -> str | None:
    for name in ("MACKEREL_APIKEY", "MACKEREL_API_KEY"):
        if key := source.raw(name):
            return _check_key(source, name, key)
    if file := source.get("MACKEREL_APIKEY_FILE"):
        try:
            key = _read_file(Path(file)).strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            source.problem(
                f"MACKEREL_APIKEY_FILE={file!r} cannot be read ({reason}); name a file that the server's user may read "
                "and that holds the API key"
            )
            return None
        if not key:
            source.problem(f"MACKEREL_APIKEY_FILE={file!r} is empty; write the API key into it")
            return None
        return _check_key(source, "MACKEREL_APIKEY_FILE", key)
    if key_in_headers:
        return _check_key(source, headers_name, key_in_headers)
    source.problem(
        "there is no API key and no Collector: set MACKEREL_APIKEY to an API key of your Mackerel organization that "
        "has write permission, or OTEL_EXPORTER_OTLP_ENDPOINT to the URL of a Collector"
    )
    return None


def _read_file(file: Path) -> str:
    if not stat.S_ISREG(file.stat().st_mode):
        # A pipe would be read once, by the arbiter, or never end.
        raise OSError(errno.EINVAL, "it is no regular file")
    return file.read_text(encoding="utf-8")


def _check_key(source: _Reader, name: str, key: str) -> str | None:
    """Refuse what cannot be a header's value. The key itself stays out of the message."""
    if any(character.isspace() for character in key):
        source.problem(
            f"{name} holds white space or a line break within its {len(key)} characters: that is not an API key; "
            "copy it again from Mackerel, without quotes and spaces"
        )
        return None
    if not (key.isascii() and key.isprintable()):
        source.problem(f"{name} holds characters that no API key has; copy it again from Mackerel")
        return None
    return key


def _timeout(source: _Reader) -> float:
    name, _ = source.first("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT")
    timeout = source.number(name, 10.0, minimum=0.001)
    seconds_at_most = 1000
    if timeout >= seconds_at_most:
        source.warnings.append(
            f"{name}={timeout:g} is taken as seconds, as everywhere in OpenTelemetry Python, not as milliseconds; "
            f"for ten seconds type {name}=10"
        )
    return timeout


def _sampler(source: _Reader) -> tuple[str, float]:
    sampler = source.choice(("OTEL_TRACES_SAMPLER",), SAMPLERS, "parentbased_always_on")
    ratio = 1.0
    argument = source.get("OTEL_TRACES_SAMPLER_ARG")
    if argument and sampler.endswith("traceidratio"):
        try:
            ratio = float(argument)
        except ValueError:
            ratio = math.nan
        if not 0.0 <= ratio <= 1.0:
            source.problem(f"OTEL_TRACES_SAMPLER_ARG={argument!r} is not a number from 0 to 1; for a tenth type 0.1")
    return sampler, ratio


def _propagators(source: _Reader) -> tuple[str, ...]:
    names = source.names("OTEL_PROPAGATORS")
    value = source.get("OTEL_PROPAGATORS")
    if not names:
        return ("tracecontext", "baggage")
    # Only now: the entry points of all installed packages are read for this.
    from importlib.metadata import entry_points, version

    known = {"tracecontext", "baggage"} | {point.name for point in entry_points(group="opentelemetry_propagator")}
    if tuple(int(part) for part in version("opentelemetry-api").split(".")[:2]) >= _API_KNOWS_NONE:
        known.add("none")
    if unknown := [name for name in names if name not in known]:
        source.problem(
            f"OTEL_PROPAGATORS={value!r}: {', '.join(map(repr, unknown))} is not installed; known here: "
            f"{', '.join(sorted(known))}"
        )
    return names


# OpenTelemetry's instrumentation of each has a variable of its own. What these say goes before the general one.
_EXCLUDED_URLS: Final = {
    "wsgi": (
        "OTEL_PYTHON_WSGI_EXCLUDED_URLS",
        "OTEL_PYTHON_DJANGO_EXCLUDED_URLS",
        "OTEL_PYTHON_FALCON_EXCLUDED_URLS",
        "OTEL_PYTHON_FLASK_EXCLUDED_URLS",
        "OTEL_PYTHON_PYRAMID_EXCLUDED_URLS",
    ),
    "asgi": (
        "OTEL_PYTHON_ASGI_EXCLUDED_URLS",
        "OTEL_PYTHON_DJANGO_EXCLUDED_URLS",
        "OTEL_PYTHON_FALCON_EXCLUDED_URLS",
        "OTEL_PYTHON_FASTAPI_EXCLUDED_URLS",
        "OTEL_PYTHON_STARLETTE_EXCLUDED_URLS",
    ),
}


def _http_options(source: _Reader, propagators: tuple[str, ...]) -> HttpOptions:
    conventions = _conventions(source.names("OTEL_SEMCONV_STABILITY_OPT_IN") or ("http",), "http")
    general = source.pattern("OTEL_PYTHON_EXCLUDED_URLS")
    excluded = {interface: source.pattern(*names) or general for interface, names in _EXCLUDED_URLS.items()}
    return HttpOptions(
        new_names=conventions != "old",
        old_names=conventions != "new",
        known_methods=frozenset(source.names("OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS")) or KNOWN_METHODS,
        excluded_urls={interface: pattern for interface, pattern in excluded.items() if pattern is not None},
        request_headers=source.pattern("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", flags=re.IGNORECASE),
        response_headers=source.pattern(
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE", flags=re.IGNORECASE
        ),
        sanitized_headers=source.pattern(
            "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS", flags=re.IGNORECASE
        ),
        propagators=propagators,
    )
