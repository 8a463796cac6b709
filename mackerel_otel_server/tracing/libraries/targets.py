"""Which library an installed instrumentation is for. Its metadata tell, so nothing is imported to find that out."""

from __future__ import annotations

import functools
import itertools
import re
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.tracing.libraries import known

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from importlib.metadata import EntryPoint

# As in METADATA: Requires-Dist: psycopg2-binary>=2.7.3.1; extra == 'instruments-any'
_REQUIRES: Final = re.compile(r"^Requires-Dist:(.*)$", re.MULTILINE)
_INSTRUMENTS: Final = re.compile(r"""\s*([\w.-]+)[^;]*;.*\bextra\s*==\s*["']instruments(-any)?["']""")
# As in RECORD: package/__init__.py,… or module.py,… or module.cpython-311-x86_64-linux-gnu.so,…
_PACKAGE: Final = re.compile(r"^([A-Za-z]\w*(?:/\w+)*)/__init__\.\w+,", re.MULTILINE)
_SINGLE_MODULE: Final = re.compile(r"^([A-Za-z]\w*)\.(?:py|[\w.-]*so|pyd),", re.MULTILINE)


def modules_of(entry_point: EntryPoint) -> set[frozenset[str]]:
    """Return sets of modules; when all of one set are imported, the instrumentation can be applied.

    What it instruments are the extras ``instruments`` (all of them) and ``instruments-any`` (one of them is enough) of
    its distribution: ``get_dist_dependency_conflicts`` in ``opentelemetry/instrumentation/dependencies.py``.
    """
    return set(_alternatives(entry_point))


def _alternatives(entry_point: EntryPoint) -> Iterator[frozenset[str]]:
    if module := known.about(entry_point.name).module:
        yield frozenset({module})
        return
    requirements = [found for line in _requirements(entry_point) if (found := _INSTRUMENTS.match(line))]
    own_name = _as_module(entry_point.name)
    all_of = [name for name, any_of in (found.groups() for found in requirements) if not any_of]
    one_of = [name for name, any_of in (found.groups() for found in requirements) if any_of]
    if own_name in map(_as_module, one_of):
        # One distribution for two libraries, such as botocore and aiobotocore, with an entry point for each.
        one_of = [name for name in one_of if _as_module(name) == own_name]
    if not requirements:
        # The library is a part of Python, or the metadata do not name it: take the library of the same name.
        yield frozenset({own_name})
    else:
        for alternative in one_of or [None]:
            names = [*all_of, alternative] if alternative else all_of
            # Where a distribution brings several modules, the import of any one of them is enough.
            yield from map(frozenset, itertools.product(*map(_modules_in, names)))


def _requirements(entry_point: EntryPoint) -> Iterable[str]:
    dist = entry_point.dist
    if dist is None:
        return ()
    metadata = dist.read_text("METADATA")
    # dist.requires would parse the description as well, which is a README of any length.
    return _REQUIRES.findall(metadata.partition("\n\n")[0]) if metadata else dist.requires or ()


def _as_module(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


@functools.cache
def _modules_in(requirement: str) -> frozenset[str]:
    """Return the top modules that a distribution brings, or just the one with its name."""
    guess = _as_module(requirement)
    try:
        dist = distribution(requirement)
    except PackageNotFoundError:
        # Not installed. If the module comes from elsewhere, the instrumentor itself compares the version.
        return frozenset({guess})
    record = dist.read_text("RECORD")
    if record is None:  # as Debian packages it
        modules = set((dist.read_text("top_level.txt") or "").split())
    elif f"\n{guess}/__init__.py," in f"\n{record}":
        return frozenset({guess})  # nearly all; thousands of lines need not be searched for more
    else:
        packages = {path.replace("/", ".") for path in _PACKAGE.findall(record)}
        modules = {name for name in packages if not any(name.startswith(f"{other}.") for other in packages)}
        modules.update(_SINGLE_MODULE.findall(record))
    return frozenset({guess} if guess in modules else (modules - {"test", "tests"}) or {guess})
