"""What the environment becomes where nothing is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mackerel_otel_server.settings.urls import without_credentials

if TYPE_CHECKING:
    from mackerel_otel_server.settings.http_options import HttpOptions
    from mackerel_otel_server.settings.problems import Problem


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The arguments of ``instrument()`` in the application's own code. They win over the environment."""

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
    """Everything that a process needs to know to trace. Its repr shows no secret."""

    service_name: str
    resource_attributes: Mapping[str, Any]
    exporters: tuple[str, ...]
    endpoint: str = field(repr=False)
    """The URL of the traces; it may hold credentials."""
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
    spool: str | None
    """The folder of the journals; empty for the default, None for no journal."""
    parts: str
    """Whose code makes and sends the spans: ``own`` or ``standard``."""
    http: HttpOptions
    omitted_attributes: frozenset[str]
    warnings: tuple[Problem, ...]

    @property
    def shown_endpoint(self) -> str:
        """The endpoint as a log may show it: without a user's name and password."""
        return without_credentials(self.endpoint)
