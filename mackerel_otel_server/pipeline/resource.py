"""The resource that describes one process and that all its spans carry."""

from __future__ import annotations

import os
import platform
import socket
import sys
import uuid
from typing import TYPE_CHECKING

from opentelemetry.sdk.resources import Resource

from mackerel_otel_server.version import __version__

if TYPE_CHECKING:
    from mackerel_otel_server.settings import Settings


def make_resource(settings: Settings) -> Resource:
    """Describe this process, as the semantic conventions for resources name things.

    Call this once per process, because each call makes a new ``service.instance.id``.
    https://opentelemetry.io/docs/specs/semconv/resource/
    """
    detected = Resource.create().attributes
    return Resource(
        {
            # A command line can hold a password, and nobody needs command lines to tell two workers apart.
            **{key: value for key, value in detected.items() if not key.startswith("process.command")},
            "host.name": socket.gethostname(),
            "process.runtime.name": sys.implementation.name,
            "process.runtime.version": platform.python_version(),
            "process.runtime.description": sys.version.replace("\n", " "),
            "telemetry.distro.name": "mackerel-otel-server",
            "telemetry.distro.version": __version__,
            **settings.resource_attributes,
            # These come last: the operator's values would be the same for all workers.
            "process.pid": os.getpid(),
            "service.instance.id": str(uuid.uuid4()),
        }
    )
