"""Look into the project's sources for what uses this package. They are parsed and never run."""

from __future__ import annotations

import ast
import warnings
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.project import files
from mackerel_otel_server.tracing import frameworks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_PACKAGE: Final = "mackerel_otel_server"
_SUFFIXES: Final = (".py", ".wsgi")
_USUAL: Final = ("wsgi.py", "asgi.py", "*/wsgi.py", "*/asgi.py", "app.py", "main.py")
_FRAMEWORKS: Final = frozenset(framework.package for framework in frameworks.known())
_DEEPEST: Final = 4
"""How many imports are followed one after the other. Even its owner hardly finds a call that is further away."""
_MOST_FILES: Final = 300
_FOREIGN: Final = frozenset({"site-packages", "dist-packages", "node_modules"})
"""Folders of what others wrote, such as those of a virtual environment within the project."""


def of_application(
    folder: str, application: str | None, roots: Sequence[str] = (), *, uwsgi: bool = True
) -> Path | None:
    """Return the file of the application, or of what it imports, that uses this package by itself.

    Args:
        folder: Where the files of modules are.
        application: ``package.module:name`` or a path, if it is known.
        roots: Further folders for modules.
        uwsgi: Whether an import of ``mackerel_otel_server.uwsgi`` is a use of this package, too.
    """
    roots = [folder, *roots]
    starts = _files(application.partition(":")[0], roots) if application else []
    for usual in () if starts else _USUAL:
        for found in sorted(Path(folder).glob(usual)):
            # Python runs the package's __init__.py before the module.
            starts += [found.with_name("__init__.py"), found]
    return that_traces(starts, roots, uwsgi=uwsgi)


def that_traces(starts: Iterable[Path], roots: Sequence[str], *, uwsgi: bool = False) -> Path | None:
    """Return the first file that uses ``instrument()``, near ones first.

    Args:
        starts: Where to begin.
        roots: Folders in which their imports are looked for.
        uwsgi: As for of_application().
    """
    seen: set[Path] = set()
    queue = deque((file, 0) for file in starts)
    while queue and len(seen) < _MOST_FILES:
        file, depth = queue.popleft()
        tree = None if file in seen else _parsed(file)
        seen.add(file)
        if tree is None:
            continue
        imported = set(_imported(tree))
        if _uses_instrument(tree) or (uwsgi and (0, f"{_PACKAGE}.uwsgi") in imported):
            return file
        for dots, module in sorted(imported) if depth < _DEEPEST else ():
            # `from . import x` is looked for beside the file itself.
            if dots <= len(file.parents):
                found = _files(module, [str(file.parents[dots - 1])] if dots else roots)
                queue.extend((one, depth + 1) for one in found)
    return None


def file_of(module: str, roots: Sequence[str]) -> Path | None:
    """Return the file of a module, or of a path that uWSGI loads, if it is in one of these folders."""
    if module.endswith(_SUFFIXES):
        names = [module]
    else:
        path = module.replace(".", "/")
        names = [f"{path}/__init__.py", f"{path}.py"]
    return next((file for root in roots for name in names if (file := Path(root, name)).is_file()), None)


def is_framework(module: str) -> bool:
    """Tell whether a module is a framework's own, such as ``django.core.wsgi``."""
    return module.partition(".")[0] in _FRAMEWORKS


def is_plain_callable(file: Path, name: str) -> bool:
    """Tell whether a file defines the callable as a function or a class of its own and uses no known framework."""
    if (tree := _parsed(file)) is None:
        return False
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    defined = any(isinstance(node, definitions) and node.name == name for node in tree.body)
    packages = {module.partition(".")[0] for _, module in _imported(tree)}
    return defined and not packages & {_PACKAGE, *_FRAMEWORKS}


def _parsed(file: Path) -> ast.Module | None:
    """Return the syntax tree of a file, None where it cannot be read or is no Python."""
    try:
        with warnings.catch_warnings():
            # The compiler may warn about the user's code, which is no subject of `check`.
            warnings.simplefilter("ignore")
            return ast.parse(files.content(file))
    except (files.UnreadableError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _files(module: str, roots: Sequence[str]) -> list[Path]:
    """Return the files that run when a module is imported, those of its packages included, if they are in a root."""
    if module.endswith(_SUFFIXES):
        return [file] if (file := file_of(module, roots)) else []
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


def _imported(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Return the names of all modules that are imported, and those that may be modules, with their leading dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module:
                yield node.level, node.module
            prefix = f"{node.module}." if node.module else ""
            yield from ((node.level, f"{prefix}{alias.name}") for alias in node.names)


def _uses_instrument(tree: ast.Module) -> bool:
    """Tell whether ``instrument`` is imported and used: called, or given to somebody who may call it."""
    packages: set[str] = set()
    direct: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            # `import mackerel_otel_server.x` binds the package, too, unless it has an `as`.
            own = [alias for alias in node.names if alias.name.partition(".")[0] == _PACKAGE]
            packages |= {alias.asname or _PACKAGE for alias in own if alias.name == _PACKAGE or not alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module == _PACKAGE:
            direct |= {alias.asname or alias.name for alias in node.names if alias.name == "instrument"}
    for node in ast.walk(tree):
        used, names = node, direct
        if isinstance(node, ast.Attribute) and node.attr == "instrument":
            used, names = node.value, packages
        if isinstance(used, ast.Name) and isinstance(used.ctx, ast.Load) and used.id in names:
            return True
    return False
