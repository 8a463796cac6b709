"""Look into the application's files without running them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection import doors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_NAME: Final = "mackerel_otel_server"
_SUFFIXES: Final = (".py", ".wsgi")
_USUAL: Final = ("wsgi.py", "asgi.py", "*/wsgi.py", "*/asgi.py", "app.py", "main.py")
_FRAMEWORKS: Final = frozenset(
    {"bottle", "django", "falcon", "fastapi", "flask", "pyramid", "starlette", "werkzeug", "rest_framework"}
)


def file_with_door(
    folder: str, application: str | None, roots: Sequence[str] = (), *, uwsgi: bool = True
) -> Path | None:
    """Return the file of the application, or of what it imports, that uses this package by itself.

    Args:
        folder: Where modules are looked for.
        application: ``package.module:name`` or a path, if it is known.
        roots: Further folders for modules.
        uwsgi: Whether an import of uWSGI's own door counts, too.
    """
    roots = [folder, *roots]
    starts: list[Path] = []
    if application and not _module(application).endswith(_SUFFIXES):
        starts = doors.module_files(_module(application), roots)
    elif file := file_of(folder, application):
        starts = [file]
    for usual in () if starts else _USUAL:
        for found in sorted(Path(folder).glob(usual)):
            # The package of a module runs first.
            starts += [found.with_name("__init__.py"), found]
    return doors.find(starts, roots, uwsgi=uwsgi)


def file_of(folder: str, application: str | None) -> Path | None:
    """Return the file that holds an application, if it is in this folder."""
    if not application:
        return None
    module = _module(application)
    if module.endswith(_SUFFIXES):
        file = Path(folder, module)
    else:
        file = Path(folder, *module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_name(f"{file.name}.py")
    return file if file.is_file() else None


def is_framework(module: str) -> bool:
    """Tell whether a module is a framework's own, such as ``django.core.wsgi``."""
    return module.partition(".")[0] in _FRAMEWORKS


def is_plain_callable(file: Path, name: str) -> bool:
    """Tell whether a file defines the callable as a function or a class of its own and uses no known framework."""
    tree = doors.parsed(file)
    if tree is None:
        return False
    defined = any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name
        for node in tree.body
    )
    return defined and not {_NAME, *_FRAMEWORKS}.intersection(_imported(tree))


def _module(application: str) -> str:
    return application.partition(":")[0]


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]
