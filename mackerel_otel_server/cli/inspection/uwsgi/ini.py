"""Read a uWSGI ini file by uWSGI's own rules, which are not those of other ini files.

Keys repeat, ``;`` and ``#`` begin a comment at the start of a line only, and other files are included where they are
named. https://uwsgi-docs.readthedocs.io/en/latest/Configuration.html
"""

from __future__ import annotations

import glob
import os
import pwd
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mackerel_otel_server.cli.inspection.findings import NotReadError
from mackerel_otel_server.cli.inspection.project import files
from mackerel_otel_server.servers.uwsgi_rules import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_INCLUDES: Final = ("ini", "include")
_INHERIT: Final = "inherit"
"""uWSGI obeys this one after it has read everything, with placeholders filled in; the others at once, without that."""
_OTHER_FORMATS: Final = ("xml", "yaml", "yml", "json", "config", "zeus")
_PLACEHOLDERS: Final = ("set-placeholder", "set-ph")
"""uWSGI fills in nothing in the values that these set; ``set`` sets an option like any other."""
_SET: Final = "set"
_ENDS: Final = ("end", "endif", "end-if", "endfor", "end-for")
_LOGIC: Final = re.compile(r"(if|for(?=-|$))-?(.*)")
_VARIABLE: Final = re.compile(r"\$\(([^()]+)\)")
_CONTENT: Final = re.compile(r"@\(([^()]+)\)")
_OPTION: Final = re.compile(r"%\(([^()]+)\)")
_DEEPEST: Final = 20
"""Files may include each other this deep; uWSGI itself has no limit and never ends."""


@dataclass(frozen=True)
class Ini(Options):
    """What one ini file says, with all that it includes."""

    files: tuple[str, ...]
    not_understood: tuple[str, ...]
    """Lines that only uWSGI itself can understand; each a sentence."""
    written: tuple[tuple[str, str], ...]
    """The options before placeholders were filled in."""

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment that the workers have, without names that end with a blank: nobody reads those."""
        changed = dict(environ)
        for name, value in self.options:
            variable, equals, rest = value.partition("=")
            if name == "env" and equals:
                if variable == variable.rstrip():
                    changed[variable] = rest
            elif name in ("env", "unenv"):
                # putenv(3) removes a variable if it is given a name without a value.
                changed.pop(value, None)
        return changed


def read(file: str, environ: Mapping[str, str]) -> Ini:
    """Read a file and what it includes.

    Args:
        file: Its path, with ``:section`` at its end if that is not ``uwsgi``.
        environ: For ``$(NAME)`` and ``if-env``.

    Raises:
        NotReadError: It is no file that can be read, or has not the section.
    """
    parsing = _Parsing(environ)
    parsing.include(file)
    options = tuple((name, value if stands else parsing.expand(value)) for name, value, stands in parsing.options)
    written = tuple((name, value) for name, value, _ in parsing.options)
    return Ini(options, tuple(dict.fromkeys(parsing.files)), tuple(dict.fromkeys(parsing.not_understood)), written)


class _Parsing:
    def __init__(self, environ: Mapping[str, str]) -> None:
        self.options: list[tuple[str, str, bool]] = []
        """Name, value, and whether the placeholders in the value stay."""
        self.files: list[str] = []
        self.not_understood: list[str] = []
        self._environ = environ
        self._depth = 0
        # Between `if-…` or `for…` and its end, this function says what becomes of each line.
        self._logic: Callable[[str], list[str]] | None = None

    def include(self, given: str) -> None:
        name, _, section = given.rpartition(":") if ":" in given else (given, "", "")
        file = name or self.files[-1]
        self._depth += 1
        if self._depth > _DEEPEST:
            raise NotReadError(f"{file!r} includes itself", "remove the line that includes it", "uWSGI never starts")
        self.files.append(file)
        found = False
        for key, value in _lines(_magic(_text(file), file), section or "uwsgi"):
            found = True
            self._take(key, value)
        if not found:
            raise NotReadError(
                f"{file!r} has no section [{section or 'uwsgi'}]",
                f"write [{section or 'uwsgi'}] above its options",
                "uWSGI reads nothing of it",
            )
        self._depth -= 1

    def _take(self, key: str, value: str) -> None:
        if key == "else":
            self._say("else: uWSGI 2.0 does not know it, and takes the lines below it as part of the `if` above it")
        if key in _ENDS:
            self._logic = None
            self.options.append((key, value, False))
        else:
            for made in self._logic(value) if self._logic else [value]:
                self._add(key, made)

    def _add(self, key: str, value: str) -> None:
        logic = _LOGIC.fullmatch(key)
        self.options.append((key, value, bool(logic) or key in (*_INCLUDES, *_PLACEHOLDERS, _SET)))
        if key in _INCLUDES:
            self.include(value)
        elif key == _INHERIT:
            self.include(self.expand(value))
        elif key in (*_PLACEHOLDERS, _SET):
            name, _, meant = value.partition("=")
            self.options.append((name, meant, key != _SET))
        elif key in _OTHER_FORMATS:
            self._say(f"{key} = {value}: a file of that format is not read")
        elif key == "envdir":
            self._say(f"{key} = {value}: the variables in that folder are not read")
        elif logic and self._logic is None:
            self._logic = self._condition(key, value) if logic[1] == "if" else self._loop(key, value)

    def _condition(self, key: str, argument: str) -> Callable[[str], list[str]]:
        kind = key.removeprefix("if").removeprefix("-")
        wanted, kind = not kind.startswith("not-"), kind.removeprefix("not-")
        name, equals, value = argument.partition("=")
        replacement, holds, path = argument, False, Path(argument)
        of_path = {"exists": path.exists, "file": path.is_file, "dir": path.is_dir, "directory": path.is_dir}
        if kind in ("env", "opt"):
            seen = self._environ.get(name) if kind == "env" else self._written(name)[0]
            holds = seen is not None and (not equals or seen == value)
            replacement = seen or ""
        elif kind in of_path:
            holds = of_path[kind]()
        elif kind == "hostname":
            holds = socket.gethostname() == argument
        elif kind != "reload":
            self._say(f"{key} = {argument}: the lines below it, up to its end, are not read")
            wanted = True
        return lambda value: [value.replace("%(_)", replacement)] if holds is wanted else []

    def _loop(self, key: str, argument: str) -> Callable[[str], list[str]]:
        items: list[str] = []
        if key == "for":
            items = argument.split()
        elif key == "for-times" and argument.isdecimal():
            items = [str(number) for number in range(1, int(argument) + 1)]
        elif key == "for-glob":
            items = sorted(glob.glob(argument)) or [argument]  # noqa: PTH207 - as uWSGI has it
        else:
            self._say(f"{key} = {argument}: the lines below it, up to its end, are not read")
        return lambda value: [value.replace("%(_)", item) for item in items]

    def expand(self, value: str) -> str:
        """Fill in ``$(VARIABLE)``, ``@(file)``, and at last ``%(option)``, also of one that comes later.

        What is not known stays.
        """
        value = self._from_outside(value)

        def fill(found: re.Match[str]) -> str:
            written, stands = self._written(found[1])
            if written is None:
                return found[0]
            return written if stands else self._from_outside(written)

        for _ in range(_DEEPEST):
            filled = _OPTION.sub(fill, value)
            if filled == value:
                break
            value = filled
        return value

    def _from_outside(self, value: str) -> str:
        value = _VARIABLE.sub(lambda found: self._environ.get(found[1], found[0]), value)
        return _CONTENT.sub(lambda found: self._content(found[1]), value)

    def _content(self, file: str) -> str:
        """Return the content of a file without its last line break, as uWSGI does."""
        scheme, is_address, _ = file.partition("://")
        if is_address or (Path(file).exists() and not Path(file).is_file()):
            # uWSGI would run a command here, or wait for ever. The rest of an address may hold a password.
            self._say(f"@({scheme + '://…' if is_address else file}): only files are read here")
            return ""
        try:
            return _decoded(file).removesuffix("\n")
        except files.UnreadableError as error:
            raise NotReadError(
                f"{self.files[-1]!r} names {file!r} by @({file}), which cannot be read ({error})",
                "name a file that exists, and type this command as a user who may read it",
                "uWSGI does not start without it",
            ) from None

    def _written(self, name: str) -> tuple[str | None, bool]:
        """Return the value of the first option of this name or None, and whether its placeholders stay."""
        return next(((value, stands) for key, value, stands in self.options if key == name), (None, False))

    def _say(self, sentence: str) -> None:
        self.not_understood.append(sentence)


def _lines(text: str, section: str) -> Iterator[tuple[str, str]]:
    current = ""
    for raw in text.split("\n"):
        line = raw.strip(" \t\r")
        if line.startswith("["):
            current = line[1:-1]
        elif line and line[0] not in ";#" and current == section:
            key, _, value = line.partition("=")
            yield key.rstrip(" \t\r"), value.strip(" \t\r")


def _text(file: str) -> str:
    try:
        return _decoded(file)
    except files.UnreadableError as error:
        raise NotReadError(
            f"{file!r} cannot be read ({error})",
            "name a regular file that exists and may be read: mackerel-otel-server check --config FILE",
        ) from None


def _decoded(file: str) -> str:
    # uWSGI passes bytes that are no text on to the environment unchanged.
    return files.content(Path(file)).decode("utf-8", "surrogateescape")


def _magic(text: str, file: str) -> str:
    """Fill in ``%d`` and the like, which uWSGI does before it looks at lines; rare ones stay.

    https://uwsgi-docs.readthedocs.io/en/latest/Configuration.html#magic-variables
    """
    path = Path(file).absolute()
    values = {
        "d": f"{path.parent}/",
        "c": path.parent.name,
        "e": path.suffix[1:],
        "g": str(os.getgid()),
        "h": socket.gethostname(),
        "k": str(os.cpu_count() or 1),
        "n": path.stem,
        "o": file,
        "p": str(path),
        "s": path.name,
        "u": str(os.getuid()),
        "U": _user_name(),
        "v": str(Path.cwd()),
        "%": "%",
    }
    return re.sub(r"%([^(\n])", lambda found: values.get(found[1], found[0]), text)


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""
