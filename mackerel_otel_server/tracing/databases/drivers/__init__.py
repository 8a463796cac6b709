"""The drivers that are traced: each file of this folder describes one in its constant ``DRIVER``, nothing else does."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mackerel_otel_server.tracing.databases.driver import Driver

DRIVERS: Final[tuple[Driver, ...]] = tuple(
    importlib.import_module(f"{__name__}.{module.name}").DRIVER for module in pkgutil.iter_modules(__path__)
)
