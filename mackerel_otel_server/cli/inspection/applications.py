"""Look into the application's files without running them."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME: Final = "mackerel_otel_server"
_USUAL: Final = ("wsgi.py", "asgi.py", "*/wsgi.py", "*/asgi.py", "app.py", "main.py")
_FRAMEWORKS: Final = frozenset(
    {"bottle", "django", "falcon", "fastapi", "flask", "pyramid", "starlette", "werkzeug", "rest_framework"}
)


def file_with_door(folder: str, application: str | None) -> Path | None:
    """Return the file of the application that uses this package by itself, as by ``instrument()``.

    Args:
        folder: Where modules are looked for.
        application: ``package.module:name`` or a path, if it is known.
    """
    known = file_of(folder, application)
    candidates = [known] if known else [found for usual in _USUAL for found in sorted(Path(folder).glob(usual))]
    return next((file for file in candidates if _NAME in _text(file)), None)


def file_of(folder: str, application: str | None) -> Path | None:
    """Return the file that holds an application, if it is in this folder."""
    if not application:
        return None
    module = application.partition(":")[0]
    if module.endswith((".py", ".wsgi")):
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
    text = _text(file)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    defined = any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name
        for node in tree.body
    )
    return defined and _NAME not in text and not _FRAMEWORKS.intersection(_imported(tree))


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
