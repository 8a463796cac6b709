"""Django REST framework. It has Django's routes, and sends Django's signal for its exceptions."""

from __future__ import annotations

from typing import Final

from mackerel_otel_server.tracing.framework import Framework

FRAMEWORK: Final = Framework(
    name="Django REST framework",
    package="rest_framework",
    distribution="djangorestframework",
    oldest="3.12",
)
