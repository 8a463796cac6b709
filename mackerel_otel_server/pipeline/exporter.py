"""One batch -> one HTTP answer, with the standard exporter over a session that guards the API key."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from mackerel_otel_server.log import log
from mackerel_otel_server.settings import API_KEY_HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from mackerel_otel_server.settings import Settings

_COMPRESSION = {"gzip": Compression.Gzip, "deflate": Compression.Deflate, "none": Compression.NoCompression}
_REDIRECTS = range(300, 400)
_REFUSALS = (400, 401, 403)  # Mackerel answers 400 to a wrong key
_SECONDS_BETWEEN_COMPLAINTS = 60.0


class CountingExporter(SpanExporter):
    """Count what another exporter delivers."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.delivered = 0
        self.requests = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export, and count if the far end took the spans."""
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
            self.requests += 1
        return result

    def shutdown(self) -> None:
        """Close the connections."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Do nothing: nothing is buffered here."""
        return self._exporter.force_flush(timeout_millis)


def make_exporter(name: str, settings: Settings) -> CountingExporter:
    """Build the exporter ``otlp`` or ``console``."""
    if name == "console":
        return CountingExporter(ConsoleSpanExporter())
    exporter = OTLPSpanExporter(
        endpoint=settings.endpoint,
        certificate_file=settings.certificate,
        client_key_file=settings.client_key,
        client_certificate_file=settings.client_certificate,
        headers={"Accept": "*/*", **settings.headers},
        timeout=settings.timeout,
        compression=_COMPRESSION[settings.compression],
        session=_Session(settings.api_key, settings.shown_endpoint),
    )
    return CountingExporter(exporter)


class _Session(requests.Session):
    """A session whose requests carry the API key if, and only if, they go to Mackerel, and that says what went wrong.

    The standard exporter merges ``OTEL_EXPORTER_OTLP_HEADERS`` into every request by itself, and its older releases
    follow redirects; both would hand the key to somebody else. Its own lines about a failure do not arrive where the
    application has switched off its loggers.
    """

    def __init__(self, api_key: str | None, shown: str) -> None:
        super().__init__()
        self.__api_key = api_key
        self._shown = shown
        self._complain_from = 0.0

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send one prepared request, without following a redirect.

        Raises:
            requests.TooManyRedirects: The endpoint answered with a redirect.
        """
        request.headers.pop(API_KEY_HEADER, None)
        if self.__api_key is not None:
            request.headers[API_KEY_HEADER] = self.__api_key
            if (request.url or "").startswith("http://"):
                # Settings allow that for this machine only, and a proxy is elsewhere.
                kwargs["proxies"] = {}
        kwargs["allow_redirects"] = False
        try:
            response = super().send(request, **kwargs)
        except requests.RequestException as error:
            self._complain(f"{self._shown} did not answer ({_cause(error)})")
            raise
        if response.status_code in _REDIRECTS:
            response.close()
            words = f"{self._shown} answered {response.status_code}, a redirect, and those are not followed"
            self._complain(f"{words}: give the URL that takes the traces itself")
            raise requests.TooManyRedirects(words)
        if not response.ok:
            hint = "; is the API key right, and has it write permission?" if response.status_code in _REFUSALS else ""
            self._complain(f"{self._shown} answered {response.status_code} {response.reason}{hint}")
        return response

    def _complain(self, words: str) -> None:
        if time.monotonic() >= self._complain_from:
            self._complain_from = time.monotonic() + _SECONDS_BETWEEN_COMPLAINTS
            log.warning("the endpoint takes no spans: %s", words)


def _cause(error: BaseException) -> str:
    """Return the innermost reason: requests wraps urllib3's wrap of what the operating system said."""
    while inner := getattr(error, "reason", None) or error.__context__:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return str(error) or type(error).__name__
