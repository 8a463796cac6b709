"""Every variable that is understood: the one source for the reader, the command line and the documents.

The frameworks' own variables, ``OTEL_PYTHON_<NAME>_EXCLUDED_URLS``, come from tracing/frameworks: see excluded_urls().

OpenTelemetry's modules have most of these names, too. The doors must not import those modules before the fork, so the
names are typed here, and a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MACKEREL_ENDPOINT: Final = "https://otlp-vaxila.mackerelio.com/v1/traces"


@dataclass(frozen=True)
class Variable:
    """One setting, and the variables that give it."""

    names: tuple[str, ...]
    """The names as they are typed. The first of them that is set is obeyed."""
    documentation: str
    """One line."""
    default: str = ""
    """The default as it would be typed; empty where there is none."""
    secret: bool = False
    """Whether the value stays out of every message."""
    words: tuple[str, ...] = ()
    """What may be typed, where the value is one of these words or a list of them."""
    minimum: float | None = None
    """The least value, where it is a number."""

    @property
    def name(self) -> str:
        """The name that goes before the others."""
        return self.names[0]


def _of(
    *names: str,
    is_: str,
    default: str = "",
    secret: bool = False,
    words: tuple[str, ...] = (),
    minimum: float | None = None,
) -> Variable:
    return Variable(names, is_, default, secret, words, minimum)


def _otlp(what: str) -> tuple[str, str]:
    # The variable of the signal goes before the one for all signals.
    # https://opentelemetry.io/docs/specs/otel/protocol/exporter/#configuration-options
    return f"OTEL_EXPORTER_OTLP_TRACES_{what}", f"OTEL_EXPORTER_OTLP_{what}"


def _limit(name: str, is_: str, default: str = "128") -> Variable:
    return Variable((name,), is_, default, minimum=0)


def excluded_urls(whose: str) -> Variable:
    """Return the variable of an interface or a framework, such as ``FLASK``, beside the general one."""
    return _of(f"OTEL_PYTHON_{whose}_EXCLUDED_URLS", is_="the same, instead of the general one; of several, all count")


API_KEY: Final = _of(
    "MACKEREL_APIKEY",
    "MACKEREL_API_KEY",
    is_="API key of the Mackerel organization, with write permission",
    secret=True,
)
API_KEY_FILE: Final = _of(
    "MACKEREL_APIKEY_FILE", is_="file that holds the key, such as a container secret; the variables above go first"
)
ENDPOINT: Final = _of(
    "MACKEREL_OTEL_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    is_="full traces URL that stands for Mackerel, where the key goes; OTEL_EXPORTER_OTLP_TRACES_ENDPOINT or "
    "OTEL_EXPORTER_OTLP_ENDPOINT (+ /v1/traces): a Collector, which gets no key",
    default=MACKEREL_ENDPOINT,
)
PROTOCOL: Final = _of(
    *_otlp("PROTOCOL"), is_="nothing else is spoken", default="http/protobuf", words=("http/protobuf",)
)
HEADERS: Final = _of(*_otlp("HEADERS"), is_="further headers, name=value,name=value", secret=True)
TIMEOUT: Final = _of(*_otlp("TIMEOUT"), is_="seconds for one request to the endpoint", default="10", minimum=0.001)
COMPRESSION: Final = _of(
    *_otlp("COMPRESSION"), is_="gzip, deflate or none", default="gzip", words=("gzip", "deflate", "none")
)
CERTIFICATE: Final = _of(
    *_otlp("CERTIFICATE"), is_="PEM file of the CAs that the endpoint's certificate may be signed by"
)
CLIENT_KEY: Final = _of(*_otlp("CLIENT_KEY"), is_="PEM file of this client's private key")
CLIENT_CERTIFICATE: Final = _of(*_otlp("CLIENT_CERTIFICATE"), is_="PEM file of this client's certificate")
# curl and urllib, too, look for the lower case first.
HTTPS_PROXY: Final = _of("https_proxy", "HTTPS_PROXY", is_="http proxy on the way to an https endpoint")
HTTP_PROXY: Final = _of(
    "http_proxy", "HTTP_PROXY", is_="http proxy on the way to an http endpoint, never for this machine itself"
)
URLS: Final = (ENDPOINT, HTTPS_PROXY, HTTP_PROXY)
NO_PROXY: Final = _of("no_proxy", "NO_PROXY", is_="hosts that are asked without a proxy")

SERVICE_NAME: Final = _of(
    "OTEL_SERVICE_NAME", is_="the name that Mackerel shows", default="the application's top package"
)
DJANGO_SETTINGS: Final = _of(
    "DJANGO_SETTINGS_MODULE", is_="Django's own; its top package is the service name where there is no better one"
)
RESOURCE_ATTRIBUTES: Final = _of(
    "OTEL_RESOURCE_ATTRIBUTES",
    is_="who is speaking, name=value,name=value; for Mackerel service.version, service.namespace and "
    "deployment.environment.name",
)

EXPORTER: Final = _of(
    "OTEL_TRACES_EXPORTER", is_="otlp, console, none, or a list", default="otlp", words=("otlp", "console", "none")
)
SAMPLER: Final = _of(
    "OTEL_TRACES_SAMPLER",
    is_="always_on, always_off, traceidratio, each also with parentbased_ before it",
    default="parentbased_always_on",
    words=(
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ),
)
SAMPLER_ARG: Final = _of("OTEL_TRACES_SAMPLER_ARG", is_="the ratio of traceidratio, 0 to 1", default="1", minimum=0)
PROPAGATORS: Final = _of(
    "OTEL_PROPAGATORS",
    is_="how context arrives in requests",
    default="tracecontext,baggage",
    words=("tracecontext", "baggage"),
)

SCHEDULE_DELAY: Final = _of(
    "OTEL_BSP_SCHEDULE_DELAY", is_="milliseconds between two batches", default="5000", minimum=1
)
MAX_QUEUE_SIZE: Final = _of("OTEL_BSP_MAX_QUEUE_SIZE", is_="spans in the queue", default="2048", minimum=1)
MAX_EXPORT_BATCH_SIZE: Final = _of(
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", is_="spans in a batch, no more than in the queue", default="512", minimum=1
)
WHY_NO_EXPORT_TIMEOUT: Final = "OTEL_EXPORTER_OTLP_TIMEOUT is the limit of a request"
EXPORT_TIMEOUT: Final = _of("OTEL_BSP_EXPORT_TIMEOUT", is_=f"has no effect here: {WHY_NO_EXPORT_TIMEOUT}", minimum=0)
SHUTDOWN_TIMEOUT: Final = _of(
    "MACKEREL_OTEL_SHUTDOWN_TIMEOUT",
    is_="seconds that a leaving worker may spend on sending; 0: it sends nothing more",
    default="5",
    minimum=0,
)
SPOOL: Final = _of(
    "MACKEREL_OTEL_SPOOL",
    is_="folder of the journals, from which the spans of a killed worker are sent later; by default "
    "mackerel-otel-UID in /dev/shm, else in the temporary folder; none: no journal",
)

ATTRIBUTE_LENGTH: Final = _limit("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "characters of an attribute's value", "")
ATTRIBUTE_COUNT: Final = _limit("OTEL_ATTRIBUTE_COUNT_LIMIT", "attributes of a span, an event or a link")
SPAN_ATTRIBUTE_LENGTH: Final = _limit(
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "characters of a span's attribute's value", ""
)
SPAN_ATTRIBUTE_COUNT: Final = _limit("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "attributes of a span")
SPAN_EVENT_COUNT: Final = _limit("OTEL_SPAN_EVENT_COUNT_LIMIT", "events of a span")
SPAN_LINK_COUNT: Final = _limit("OTEL_SPAN_LINK_COUNT_LIMIT", "links of a span")
EVENT_ATTRIBUTE_COUNT: Final = _limit("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", "attributes of an event")
LINK_ATTRIBUTE_COUNT: Final = _limit("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "attributes of a link")

EXCLUDED_URLS: Final = _of(
    "OTEL_PYTHON_EXCLUDED_URLS",
    is_="regular expressions: a request to a URL (without its query) in which one is found makes no span",
)
WSGI_EXCLUDED_URLS: Final = excluded_urls("WSGI")
ASGI_EXCLUDED_URLS: Final = excluded_urls("ASGI")
REQUEST_HEADERS: Final = _of(
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST",
    is_="names of the request's headers, or regular expressions for them, that become attributes of its span",
)
RESPONSE_HEADERS: Final = _of(
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_RESPONSE",
    is_="names of the response's headers, or regular expressions for them, that become attributes of the span",
)
SANITIZED_HEADERS: Final = _of(
    "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SANITIZE_FIELDS",
    is_="names of headers, or regular expressions for them, whose values appear as [REDACTED]",
)
KNOWN_METHODS: Final = _of(
    "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS",
    is_="request methods that appear as they are; all others are _OTHER",
    default="CONNECT,DELETE,GET,HEAD,OPTIONS,PATCH,POST,PUT,QUERY,TRACE",
)
OMIT_ATTRIBUTES: Final = _of("MACKEREL_OTEL_OMIT_ATTRIBUTES", is_="names of attributes that no span may carry")
DISABLED_INSTRUMENTATIONS: Final = _of(
    "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", is_="drivers and libraries that are not traced; *: all"
)
SEMCONV: Final = _of(
    "OTEL_SEMCONV_STABILITY_OPT_IN",
    is_="which attribute names spans have",
    default="http,database",
    words=("http", "http/dup", "database", "database/dup"),
)
PARTS: Final = _of(
    "MACKEREL_OTEL_PARTS",
    is_="whose code makes and sends the spans: own, or OpenTelemetry's own parts (standard), to compare",
    default="own",
    words=("own", "standard"),
)
SDK_DISABLED: Final = _of(
    "OTEL_SDK_DISABLED", is_="true: nothing is set up and nothing is logged", default="false", words=("true", "false")
)

CATALOGUE: Final = tuple(value for value in list(globals().values()) if isinstance(value, Variable))
"""All of the above, in this order."""
LIMITS: Final = tuple(variable for variable in CATALOGUE if variable.name.endswith("_LIMIT"))
"""The limits of spans. The SDK reads them itself."""


def with_frameworks(names: Iterable[str]) -> tuple[Variable, ...]:
    """Return the catalogue with the variables that exclude URLs of these frameworks."""
    position = CATALOGUE.index(ASGI_EXCLUDED_URLS) + 1
    return (*CATALOGUE[:position], *map(excluded_urls, names), *CATALOGUE[position:])
