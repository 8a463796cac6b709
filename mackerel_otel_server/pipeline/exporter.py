"""One batch -> one HTTP answer, with the standard exporter over a session that guards the API key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import requests
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from mackerel_otel_server.settings import API_KEY_HEADER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opentelemetry.sdk.trace import ReadableSpan

    from mackerel_otel_server.settings import Settings

_COMPRESSION = {"gzip": Compression.Gzip, "deflate": Compression.Deflate, "none": Compression.NoCompression}
_REDIRECTS = range(300, 400)


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


def make_exporter(name: str, settings: Settings) -> SpanExporter:
    """Build the exporter ``otlp`` or ``console``."""
    if name == "console":
        return ConsoleSpanExporter()
    return OTLPSpanExporter(
        endpoint=settings.endpoint,
        certificate_file=settings.certificate,
        client_key_file=settings.client_key,
        client_certificate_file=settings.client_certificate,
        headers={"Accept": "*/*", **settings.headers},
        timeout=settings.timeout,
        compression=_COMPRESSION[settings.compression],
        session=_Session(settings.api_key),
    )


class _Session(requests.Session):
    """A session whose requests carry the API key if, and only if, they go to Mackerel.

    The standard exporter merges ``OTEL_EXPORTER_OTLP_HEADERS`` into every request by itself, and its older releases
    follow redirects; both would hand the key to somebody else.
    """

    def __init__(self, api_key: str | None) -> None:
        super().__init__()
        self.__api_key = api_key

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """Send one prepared request, without following a redirect.

        Raises:
            requests.TooManyRedirects: The endpoint answered with a redirect.
        """
        request.headers.pop(API_KEY_HEADER, None)
        if self.__api_key is not None:
            request.headers[API_KEY_HEADER] = self.__api_key
        kwargs["allow_redirects"] = False
        response = super().send(request, **kwargs)
        if response.status_code in _REDIRECTS:
            response.close()
            raise requests.TooManyRedirects(
                f"the endpoint answered {response.status_code}, a redirect; the spans are lost: give the URL that "
                "takes the traces itself"
            )
        return response
