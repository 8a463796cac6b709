"""Every variable that is understood: the one source for the reader, the command line and the documents.

Names of OpenTelemetry's are typed here, and compared with its own by a test: its modules are no part of what the
doors import before the fork.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MACKEREL_ENDPOINT: Final = "https://otlp-vaxila.mackerelio.com/v1/traces"


@dataclass(frozen=True)
class Variable:
    """One setting, and the variables that give it."""

    names: tuple[str, ...]
    """As they are typed; the first that is set is obeyed."""
    documentation: str
    """One line."""
    default: str = ""
    """As it would be typed; empty where there is none."""
    secret: bool = False
    """Whether the value stays out of every message."""

    @property
    def name(self) -> str:
        """The name to type: it goes before the others."""
        return self.names[0]


def _of(*names: str, is_: str, default: str = "", secret: bool = False) -> Variable:
    return Variable(names, is_, default, secret)


def _otlp(what: str, *, is_: str, default: str = "", secret: bool = False) -> Variable:
    # The variable of the signal goes before the one for all signals.
    # https://opentelemetry.io/docs/specs/otel/protocol/exporter/#configuration-options
    return Variable((f"OTEL_EXPORTER_OTLP_TRACES_{what}", f"OTEL_EXPORTER_OTLP_{what}"), is_, default, secret)


def _excluded(whose: str) -> Variable:
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
PROTOCOL: Final = _otlp("PROTOCOL", is_="nothing else is spoken", default="http/protobuf")
HEADERS: Final = _otlp("HEADERS", is_="further headers, name=value,name=value", secret=True)
TIMEOUT: Final = _otlp("TIMEOUT", is_="seconds for one request to the endpoint", default="10")
COMPRESSION: Final = _otlp("COMPRESSION", is_="gzip, deflate or none", default="gzip")
CERTIFICATE: Final = _otlp("CERTIFICATE", is_="PEM file of the CAs that the endpoint's certificate may be signed by")
CLIENT_KEY: Final = _otlp("CLIENT_KEY", is_="PEM file of this client's private key")
CLIENT_CERTIFICATE: Final = _otlp("CLIENT_CERTIFICATE", is_="PEM file of this client's certificate")
# Lower case first, as curl and urllib do.
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

EXPORTER: Final = _of("OTEL_TRACES_EXPORTER", is_="otlp, console, none, or a list", default="otlp")
SAMPLER: Final = _of(
    "OTEL_TRACES_SAMPLER",
    is_="always_on, always_off, traceidratio, each also with parentbased_ before it",
    default="parentbased_always_on",
)
SAMPLER_ARG: Final = _of("OTEL_TRACES_SAMPLER_ARG", is_="the ratio of traceidratio, 0 to 1", default="1")
PROPAGATORS: Final = _of("OTEL_PROPAGATORS", is_="how context arrives in requests", default="tracecontext,baggage")

SCHEDULE_DELAY: Final = _of("OTEL_BSP_SCHEDULE_DELAY", is_="milliseconds between two batches", default="5000")
MAX_QUEUE_SIZE: Final = _of("OTEL_BSP_MAX_QUEUE_SIZE", is_="spans in the queue", default="2048")
MAX_EXPORT_BATCH_SIZE: Final = _of(
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE", is_="spans in a batch, no more than in the queue", default="512"
)
EXPORT_TIMEOUT: Final = _of(
    "OTEL_BSP_EXPORT_TIMEOUT", is_="has no effect here: OTEL_EXPORTER_OTLP_TIMEOUT is the limit of a request"
)
SHUTDOWN_TIMEOUT: Final = _of(
    "MACKEREL_OTEL_SHUTDOWN_TIMEOUT",
    is_="seconds that a leaving worker may spend on sending; 0: it sends nothing more",
    default="5",
)

# The SDK reads these itself.
ATTRIBUTE_LENGTH: Final = _of("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", is_="characters of an attribute's value")
ATTRIBUTE_COUNT: Final = _of(
    "OTEL_ATTRIBUTE_COUNT_LIMIT", is_="attributes of a span, an event or a link", default="128"
)
SPAN_ATTRIBUTE_LENGTH: Final = _of(
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", is_="characters of a span's attribute's value"
)
SPAN_ATTRIBUTE_COUNT: Final = _of("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", is_="attributes of a span", default="128")
SPAN_EVENT_COUNT: Final = _of("OTEL_SPAN_EVENT_COUNT_LIMIT", is_="events of a span", default="128")
SPAN_LINK_COUNT: Final = _of("OTEL_SPAN_LINK_COUNT_LIMIT", is_="links of a span", default="128")
EVENT_ATTRIBUTE_COUNT: Final = _of("OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT", is_="attributes of an event", default="128")
LINK_ATTRIBUTE_COUNT: Final = _of("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", is_="attributes of a link", default="128")

EXCLUDED_URLS: Final = _of(
    "OTEL_PYTHON_EXCLUDED_URLS",
    is_="regular expressions: a request to a URL (without its query) in which one is found makes no span",
)
WSGI_EXCLUDED_URLS: Final = _excluded("WSGI")
ASGI_EXCLUDED_URLS: Final = _excluded("ASGI")
DJANGO_EXCLUDED_URLS: Final = _excluded("DJANGO")
FALCON_EXCLUDED_URLS: Final = _excluded("FALCON")
FASTAPI_EXCLUDED_URLS: Final = _excluded("FASTAPI")
FLASK_EXCLUDED_URLS: Final = _excluded("FLASK")
PYRAMID_EXCLUDED_URLS: Final = _excluded("PYRAMID")
STARLETTE_EXCLUDED_URLS: Final = _excluded("STARLETTE")
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
SEMCONV: Final = _of("OTEL_SEMCONV_STABILITY_OPT_IN", is_="which attribute names spans have", default="http,database")
SDK_DISABLED: Final = _of("OTEL_SDK_DISABLED", is_="true: nothing is set up and nothing is logged", default="false")

LIMITS: Final = (
    ATTRIBUTE_LENGTH,
    ATTRIBUTE_COUNT,
    SPAN_ATTRIBUTE_LENGTH,
    SPAN_ATTRIBUTE_COUNT,
    SPAN_EVENT_COUNT,
    SPAN_LINK_COUNT,
    EVENT_ATTRIBUTE_COUNT,
    LINK_ATTRIBUTE_COUNT,
)

CATALOGUE: Final = tuple(value for value in list(globals().values()) if isinstance(value, Variable))
"""All of the above, in this order."""
