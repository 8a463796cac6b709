"""Find who calls ``instrument()``: in the project's own modules, which are parsed and never run."""

from __future__ import annotations

import ast
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import files

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_PACKAGE: Final = "mackerel_otel_server"
_CALL: Final = "instrument"
_UWSGI: Final = "mackerel_otel_server.uwsgi"
_DEEPEST: Final = 4
"""Imports that follow on each other; a call that lies deeper is hard to find for its owner, too."""
_MOST_FILES: Final = 300
_FOREIGN: Final = frozenset({"site-packages", "dist-packages", "node_modules"})
"""Folders of what others wrote, such as those of a virtual environment within the project."""


def find(starts: Iterable[Path], roots: Sequence[str], *, uwsgi: bool = False) -> Path | None:
    """Return the first file that uses ``instrument()``, near ones first.

    Args:
        starts: Where to begin.
        roots: Folders in which their imports are looked for.
        uwsgi: Whether an import of uWSGI's own door counts, too.
    """
    seen: set[Path] = set()
    level = list(starts)
    for _ in range(_DEEPEST + 1):
        following: list[Path] = []
        for file in level:
            if file in seen or len(seen) >= _MOST_FILES:
                continue
            seen.add(file)
            tree = parsed(file)
            if tree is None:
                continue
            if _calls(tree) or (uwsgi and _UWSGI in _modules(tree)):
                return file
            following += _imported(tree, file, roots)
        level = following
    return None


def parsed(file: Path) -> ast.Module | None:
    """Return the syntax tree of a file, None where it cannot be read or is no Python."""
    try:
        with warnings.catch_warnings():
            # What the compiler thinks of the user's strings belongs to another place.
            warnings.simplefilter("ignore")
            return ast.parse(files.content(file))
    except (files.UnreadableError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def module_files(module: str, roots: Sequence[str]) -> list[Path]:
    """Return the files that run when a module is imported, those of its packages included, if they are in a root."""
    for root in roots:
        found: list[Path] = []
        folder = Path(root)
        for part in module.split("."):
            package, plain = folder / part / "__init__.py", folder / f"{part}.py"
            found += [file for file in (package, plain) if file.is_file()][:1]
            folder /= part
        if found and not _FOREIGN.intersection(found[0].parts):
            return found
    return []


def _calls(tree: ast.Module) -> bool:
    """Tell whether ``instrument`` is imported and used: called, or given to somebody who may call it."""
    packages: set[str] = set()
    direct: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            packages |= {alias.asname or _PACKAGE for alias in node.names if _is_package(alias)}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module == _PACKAGE:
            direct |= {alias.asname or alias.name for alias in node.names if alias.name == _CALL}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in direct:
            return True
        if isinstance(node, ast.Attribute) and node.attr == _CALL:
            whose = node.value
            if isinstance(whose, ast.Name) and whose.id in packages:
                return True
    return False


def _is_package(alias: ast.alias) -> bool:
    """Tell whether this binds the package: ``import mackerel_otel_server.x`` does so, too, without ``as``."""
    return alias.name == _PACKAGE or (alias.name.startswith(f"{_PACKAGE}.") and alias.asname is None)


def _modules(tree: ast.Module) -> set[str]:
    """Return the names of all modules that are imported, and those that may be modules."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def _imported(tree: ast.Module, file: Path, roots: Sequence[str]) -> Iterator[Path]:
    for module in sorted(_modules(tree)):
        yield from module_files(module, roots)
    for node in ast.walk(tree):
        # `from . import x` is looked for beside the file itself.
        if isinstance(node, ast.ImportFrom) and 0 < node.level <= len(file.parents):
            beside = [str(file.parents[node.level - 1])]
            prefix = f"{node.module}." if node.module else ""
            for alias in node.names:
                yield from module_files(f"{prefix}{alias.name}", beside)
