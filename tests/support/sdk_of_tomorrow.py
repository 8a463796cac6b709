"""An SDK of OpenTelemetry whose spans work as today's, but have another private field."""

from __future__ import annotations

from pathlib import Path

# The interpreter imports this module by itself when it starts.
_SITECUSTOMIZE = """
import importlib.machinery

load = importlib.machinery.SourceFileLoader.get_code

def get_code(self, name):
    if name != "opentelemetry.sdk.trace":
        return load(self, name)
    source = self.get_data(self.path).replace(b"self._start_time", b"self._began")
    return self.source_to_code(source, self.path)

importlib.machinery.SourceFileLoader.get_code = get_code
"""


def install(folder: Path) -> dict[str, str]:
    """Return the environment of an interpreter that has this SDK.

    Args:
        folder: Where to put what is needed.
    """
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return {"PYTHONPATH": str(folder)}
