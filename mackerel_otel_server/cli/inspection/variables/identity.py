"""Who sends the spans: attributes whose names are probably slips."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import Finding, warn
from mackerel_otel_server.settings import catalogue

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mackerel_otel_server.settings.reader import Reader

_ENVIRONMENT: Final = "deployment.environment.name"
_OLD_ENVIRONMENT: Final = "deployment.environment"
_NOT_ENVIRONMENT: Final = ("service.environment.name", "service.environment", "environment", "environment.name", "env")
# https://opentelemetry.io/docs/specs/semconv/resource/; a test compares them with OpenTelemetry's own.
KNOWN: Final = (
    *("service.name", "service.version", "service.namespace", "service.instance.id", _ENVIRONMENT, "deployment.name"),
    *("deployment.id", "host.name", "host.id", "host.type", "host.arch", "host.ip", "host.image.id", "os.type"),
    *("os.name", "os.version", "os.description", "process.pid", "process.owner", "process.runtime.name"),
    *("container.id", "container.name", "container.image.name", "container.image.tags", "cloud.provider"),
    *("cloud.platform", "cloud.region", "cloud.account.id", "cloud.availability_zone", "cloud.resource_id"),
    *("k8s.cluster.name", "k8s.namespace.name", "k8s.node.name", "k8s.pod.name", "k8s.pod.uid", "k8s.container.name"),
    *("k8s.deployment.name", "k8s.statefulset.name", "k8s.daemonset.name", "k8s.replicaset.name", "k8s.job.name"),
    *("k8s.cronjob.name", "aws.ecs.cluster.arn", "aws.ecs.task.arn", "aws.ecs.task.family", "faas.name"),
    *("telemetry.sdk.name", "telemetry.sdk.language", "telemetry.sdk.version", "webengine.name"),
)
_LIKENESS: Final = 0.88
"""A ratio of ``difflib``: ``service.nmae`` is near enough to ``service.name``, ``service.team`` is not."""


def findings(source: Reader) -> Iterator[Finding]:
    """Look for near misses in ``OTEL_RESOURCE_ATTRIBUTES``."""
    variable, _ = source.first(catalogue.RESOURCE_ATTRIBUTES)
    attributes = source.pairs(catalogue.RESOURCE_ATTRIBUTES)
    for given, value in attributes.items():
        meant = _meant(given, attributes)
        if meant is None:
            continue
        typed = value.replace("%", "%25").replace(",", "%2C")
        old = given == _OLD_ENVIRONMENT
        yield warn(
            f"{variable} holds {given!r}, " + ("the old name of" if old else "which is near to") + f" {meant!r}",
            f"Mackerel looks for {meant} first" if old else f"Mackerel gets it under that name, and not as {meant}",
            f"type {meant}={typed} in its place in {variable}",
        )


def _meant(given: str, attributes: Mapping[str, str]) -> str | None:
    """Return the known name that is not given and was meant."""
    if given in KNOWN or given[0] in "'\"":  # quotes are told of elsewhere
        return None
    if given == _OLD_ENVIRONMENT or given.lower() in _NOT_ENVIRONMENT:
        return None if _ENVIRONMENT in attributes else _ENVIRONMENT
    bare = {_bare(name): name for name in KNOWN}
    near = bare.get(_bare(given)) or next(iter(get_close_matches(given.lower(), KNOWN, 1, _LIKENESS)), None)
    # An operator's own attribute may have a known name at its beginning.
    return None if near is None or near in attributes or given.startswith(f"{near}.") else near


def _bare(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
