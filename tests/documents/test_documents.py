"""What the documents claim is what the code does."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import os
import re
import sys
from itertools import product
from pathlib import Path

import pytest
from documents import (
    CONTRIBUTING,
    ENGLISH,
    EVERYTHING,
    JAPANESE,
    NAMES,
    PAIRS,
    ROOT,
    block,
    blocks,
    both,
    read,
    steps,
    tables,
)

import mackerel_otel_server
from mackerel_otel_server.cli import _parser
from mackerel_otel_server.cli.all_variables import VARIABLES
from mackerel_otel_server.cli.init import FRAGMENTS
from mackerel_otel_server.cli.receiver import web
from mackerel_otel_server.cli.receiver.addresses import MADE_UP_KEY
from mackerel_otel_server.pipeline.answer import UNCONFIRMED, Cause
from mackerel_otel_server.settings.parts import STANDARD_PACKAGES
from mackerel_otel_server.tracing import databases, frameworks


def _commands(text: str) -> list[str]:
    """Return the code blocks without their comments, which are translated."""
    return [re.sub(r"\s+#.*", "", block) for block in blocks(text, "(?:sh|ini|python)")]


def _tables(text: str) -> list[int]:
    return [len(table.splitlines()) for table in tables(text)]


@pytest.mark.parametrize(("english", "japanese"), PAIRS)
def test_both_languages_have_the_same_sections_commands_and_tables(english: str, japanese: str) -> None:
    levels = [[len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)] for text in (english, japanese)]
    assert levels[0] == levels[1]
    assert _commands(english) == _commands(japanese)
    assert _tables(english) == _tables(japanese)
    names = [set(re.findall(r"(?:OTEL|MACKEREL)_[A-Z_]+", text)) for text in (english, japanese)]
    assert names[0] == names[1]


def test_every_japanese_page_has_an_english_one() -> None:
    japanese = {file.name.removesuffix(".ja.md") for file in (ROOT / "docs").glob("*.ja.md")}
    assert {f"docs/{name}" for name in japanese} == set(NAMES) - {"README"}


@pytest.mark.parametrize("readme", both("README"))
def test_the_readme_is_short_and_leads_to_every_page(readme: str) -> None:
    assert len(readme.splitlines()) <= 200
    ending = ".ja.md" if readme == JAPANESE["README"] else ".md"
    links = re.findall(r"\]\(([^)\s]+)\)", readme)
    assert {f"{name}{ending}" for name in NAMES if name != "README"} <= set(links)
    assert {"CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} <= set(links)


def _without_signal(name: str) -> str:
    """Return ``OTEL_EXPORTER_OTLP_TIMEOUT`` for ``OTEL_EXPORTER_OTLP_TRACES_TIMEOUT``."""
    return name.replace("_OTLP_TRACES_", "_OTLP_")


@pytest.mark.parametrize("page", both("docs/configuration"))
def test_the_table_of_variables_is_the_catalogue(page: str) -> None:
    table = next(table for table in tables(page) if "`MACKEREL_APIKEY_FILE`" in table)
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    defaults = {name: variable.default for variable in VARIABLES for name in map(_without_signal, variable.names)}
    # Left out: Django's own variable, and the lower-case names that curl and urllib read, too.
    names = {name for name in defaults if name.isupper() and name != "DJANGO_SETTINGS_MODULE"}
    documented: set[str] = set()
    for first, _, default in rows:
        cell = first.replace("[TRACES_]", "").replace("`…CLIENT", "`OTEL_EXPORTER_OTLP_CLIENT")
        in_row = {_without_signal(name) for name in re.findall(r"`([A-Z][A-Z_]+)`", cell)}
        for start in re.findall(r"`(OTEL_[A-Z]+_)…_LIMIT`", cell):
            in_row |= {name for name in names if name.startswith(start) and name.endswith("_LIMIT")}
        documented |= in_row
        # Their defaults are words, which differ by language, or are the same as another variable's.
        worded = {"OTEL_SERVICE_NAME", "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "OTEL_EXPORTER_OTLP_ENDPOINT"}
        if "_LIMIT`" not in cell:
            for name in in_row - worded - {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}:
                assert defaults[name] in default, name
    assert documented == names


FIRST_CELL = re.compile(r"^\| (`.*?) \| ", re.MULTILINE)


def _messages(pages: dict[str, str]) -> list[str]:
    """Return what the tables of troubleshooting have in their first column, with ``…`` for what varies."""
    page = pages["docs/troubleshooting"]
    # Not the table of the options of `check`.
    told = "".join(table for table in tables(page) if "`--send`" not in table)
    messages = [message for cell in FIRST_CELL.findall(told) for message in re.findall(r"`(.*?)`", cell)]
    return messages + re.findall(r"`((?:tracing is off|the endpoint takes)[^`]*)`", page)


def _longest(text: str) -> str:
    """Return the longest part of a message that does not vary."""
    return max(re.split(r"…|\(|\)|\d+|gunicorn\.conf\.py", text), key=len).strip()


def _template(node: ast.AST) -> str:
    """Return a string of the source with ``…`` where something is put in; empty where it is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return re.sub(r"%[sdr]", "…", node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _assigned(function: ast.AST) -> dict[str, list[str]]:
    """Return the strings that the variables of a function get."""
    found: dict[str, list[str]] = {}
    for node in (node for node in ast.walk(function) if isinstance(node, ast.Assign)):
        names, values = ([part, *getattr(part, "elts", ())] for part in (node.targets[0], node.value))
        for name, value in zip(names, values, strict=False):
            if isinstance(name, ast.Name) and (text := _template(value)):
                found.setdefault(name.id, []).append(text)
    return found


def _possible(node: ast.AST, assigned: dict[str, list[str]]) -> list[str]:
    """Return what _template() returns, for each string that a variable in the place of the string, or in it, may be."""
    if isinstance(node, ast.Name):
        return assigned.get(node.id, [""])
    if not isinstance(node, ast.JoinedStr):
        return [_template(node)]
    parts = [
        [str(part.value)] if isinstance(part, ast.Constant) else assigned.get(ast.unparse(part.value), ["…"])
        for part in node.values
        if isinstance(part, ast.Constant | ast.FormattedValue)
    ]
    return ["".join(chosen) for chosen in product(*parts)]


def _templates() -> dict[str, str]:
    """Return every message that the package writes into a log, and the file that it comes from."""
    package = Path(mackerel_otel_server.__file__).parent
    found = {"; ".join(advice): "answer.py" for advice in (*(cause.value for cause in Cause), UNCONFIRMED)}
    for file in package.rglob("*.py"):
        if file.relative_to(package).parts[0] == "cli":
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            assigned = _assigned(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    found |= {text: file.name for text in _messages_of(node, assigned) if len(text) > 10}
    return found


def _messages_of(node: ast.Call, assigned: dict[str, list[str]]) -> list[str]:
    called = ast.unparse(node.func)
    if re.search(r"(^|\.)log\.(info|warning|error|exception)$|^warn_once\.warn$|^write$|\.resolve$", called):
        return _possible(node.args[0], assigned) if node.args else []
    if called in ("source.problem", "self.problem", "source.warning", "source.unknown_word", "Problem"):
        texts = product(*(_possible(argument, assigned) for argument in node.args[1:]))
        return ["; ".join(filter(None, chosen)) for chosen in texts]
    return []


def test_each_message_in_troubleshooting_is_one_that_the_package_writes() -> None:
    messages = _messages(ENGLISH)
    assert len(messages) > 50
    source = " ".join(_templates()) + " the endpoint takes no spans: "  # which stands before each cause
    assert [message for message in messages if _longest(message) not in source] == []
    assert messages == _messages(JAPANESE)


def test_each_message_that_the_package_writes_is_explained() -> None:
    templates = _templates()
    # All kinds are found: calls on the logger, problems and warnings of the settings, causes of the exporter.
    assert {"uwsgi.py", "gunicorn.py", "worker.py", "reader.py", "identity.py", "answer.py"} <= set(templates.values())
    known = [_longest(message) for message in _messages(ENGLISH)]
    # The line in the README; and a framework that cannot be patched, with a traceback.
    known += ["sends traces as"]
    alone = {"… is not traced"}
    unexplained = {
        text: file for text, file in templates.items() if not any(words in text for words in known) | (text in alone)
    }
    assert unexplained == {}


@pytest.mark.parametrize("page", both("docs/architecture"))
def test_the_picture_of_the_house_has_every_module(page: str) -> None:
    package = Path(mackerel_otel_server.__file__).parent
    (picture,) = (block for block in blocks(page, "text") if "version.py" in block)
    folders = ("servers", "settings", "pipeline", "tracing", "process")
    named = set(re.findall(r"\w+\.py", picture))
    assert named == {file.name for file in package.glob("*.py")}
    within = {entry.stem for folder in folders for entry in (package / folder).iterdir() if entry.name[0] != "_"}
    missing = {name for name in within if not re.search(rf"\b{name}\b", picture, re.ASCII)}
    assert missing == set()


NOT_RUN = {
    ("sh", "scripts/demo"): "it makes the checkout's own .venv; test_demo.py runs the command that it ends with",
    (
        "sh",
        "MACKEREL_OTEL_PARTS=standard",
    ): "test_standard_parts.py runs the mode; the test of the extra has its packages",
    ("sh", "scripts/test"): "it runs these tests",
    ("text", "version.py"): "the picture of the house, which a test compares with the modules",
    ("python", "import mackerel_otel_server\n\nmackerel_otel_server.instrument()\n"): "the test of the call has it",
    ("sh", "ssh -L"): "it needs another machine; the test of the ports has its numbers",
    ("text", "Worker 12974"): "test_demo.py looks at the trees of a real demo",
    ("sh", "benchmarks/hostile.py"): "it sends a million requests",
    ("sh", "pytest tests/unit"): "it makes a virtual environment; the tests of the extra look at what it installs",
    ("sh", "pre-commit install"): "it changes the checkout; the test of its configuration has it",
}
"""Blocks that no test takes from the documents, and why."""


def test_every_code_block_of_the_documents_is_taken_by_a_test() -> None:
    files = [Path(__file__).with_name(name) for name in ("test_run.py", "test_contributing.py")]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    taken = {
        (str(ast.literal_eval(node.args[0])), str(ast.literal_eval(node.args[1])))
        for node in nodes
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "block"
    }
    assert len(taken) > 10
    languages = set(re.findall(r"^```(\w+)$", EVERYTHING, re.MULTILINE))
    left = [
        (language, found)
        for language in languages
        for found in blocks(EVERYTHING, language)
        if not any(language == other and words in found for other, words in taken | set(NOT_RUN))
    ]
    assert left == []
    for language, words in NOT_RUN:
        assert any(words in found for found in blocks(EVERYTHING, language)), words


PROSE = re.sub(r"^```.*?^```", "", EVERYTHING, flags=re.MULTILINE | re.DOTALL)
PROGRAMS = ("mackerel-otel-server", "pip", "gunicorn", "uwsgi", "uvicorn", "sudo", "docker", "kubectl", "otelcol")
COMMANDS = sorted(
    command
    for command in set(re.findall(r"`([^`\n]+)`", PROSE))
    if command.startswith((*(f"{program} " for program in PROGRAMS), "scripts/", ".ci/"))
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_between_the_lines_is_one_that_works(command: str) -> None:
    words = command.split()
    if words[0] == "mackerel-otel-server":
        _parser(words[1:]).parse_args(words[1:])
    elif words[0] == "pip":
        # The tests use that package, so it is installed here.
        assert importlib.metadata.version(words[2])
    elif "/" in words[0]:
        assert os.access(ROOT / words[0], os.X_OK)
    elif command == "gunicorn -e":
        assert "Do not give the key with" in EVERYTHING
    else:
        # It stands in a code block, which a test takes, or in a file of `init`, which tests start.
        fragments = "".join(fragment.read() for fragment in FRAGMENTS.values())
        assert command in steps() or command in fragments or any(command in block for block in blocks(EVERYTHING, "sh"))


BOTH = [f"{name}{ending}" for name in NAMES for ending in (".md", ".ja.md")]
DOCUMENTS = (*BOTH, "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
CHANGELOG = read("CHANGELOG.md")


def _anchors(text: str) -> set[str]:
    """Return what GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_within_the_repository_leads_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", read(document))
    broken = []
    for link in links:
        if re.match(r"https://", link):
            continue
        name, _, anchor = link.partition("#")
        file = (ROOT / document).parent / name if name else ROOT / document
        if not file.is_file() or (anchor and anchor not in _anchors(file.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", [*DOCUMENTS, *(f"conf_examples/{one.file}" for one in FRAGMENTS.values())])
def test_every_variable_that_is_named_is_one_that_is_understood(document: str) -> None:
    text = read(document).replace("[TRACES_]", "")
    known = {name for variable in VARIABLES for name in variable.names}
    if document == "CONTRIBUTING.md":
        known.add("MACKEREL_OTEL_SLOW_REQUEST")  # made up there, to show how a variable is added
    # `OTEL_SPAN_…_LIMIT` is no variable, but the beginning of several.
    assert set(re.findall(r"\b(?:OTEL|MACKEREL)_[A-Z_]*[A-Z](?![A-Z_…*])", text)) - known == set()


def test_every_file_of_the_repository_that_is_named_is_there() -> None:
    # Other folders whose name begins with a dot, such as .venv, are made by commands.
    ours = [entry.name for entry in ROOT.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    folders = "|".join(map(re.escape, [*ours, ".ci", ".github"]))
    named = {
        document: set(re.findall(rf"(?:^|[`\s(])((?:{folders})/[\w./-]*)", read(document), re.MULTILINE))
        for document in DOCUMENTS
    }
    assert {"scripts/demo", "scripts/test"} <= named["README.md"] & named["README.ja.md"]
    assert {".ci/run", "mackerel_otel_server/version.py", "tests/unit"} <= named["CONTRIBUTING.md"]
    assert "conf_examples/" in named["docs/architecture.md"] & named["docs/architecture.ja.md"]
    assert [name for names in named.values() for name in names if not (ROOT / name).exists()] == []


def test_every_module_that_contributors_are_told_of_is_there() -> None:
    # Not .tox/, which a command makes.
    told = set(re.findall(r"`(\w[\w/.]*(?:/|\.py))`", CONTRIBUTING + ENGLISH["docs/architecture"]))
    assert {"settings/", "worker.py", "on_or_off.py"} <= told
    folders = [ROOT / "conf_examples", ROOT / "mackerel_otel_server", ROOT / "tests"]
    entries = [*folders, *(entry for folder in folders for entry in folder.rglob("*"))]
    paths = [f"/{entry.relative_to(ROOT)}/" if entry.is_dir() else f"/{entry.relative_to(ROOT)}" for entry in entries]
    # A contributor is told the end of a path.
    assert {name for name in told if not any(path.endswith(f"/{name}") for path in paths)} == set()


def test_the_changelog_begins_with_this_version_and_says_nothing_twice() -> None:
    versions = re.findall(r"^## \[(.*?)\]", CHANGELOG, re.MULTILINE)
    assert len(versions) == len(re.findall(r"^## ", CHANGELOG, re.MULTILINE))
    # What is not released yet stands above the version, which is the package's, also before the first release.
    assert versions == ["Unreleased"] or next(one for one in versions if one != "Unreleased") == (
        mackerel_otel_server.__version__
    )
    assert len(set(versions)) == len(versions)
    text = re.sub(r"^(#.*|\w.*:)\n", "", CHANGELOG, flags=re.MULTILINE)
    items = [" ".join(item.split()) for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]]
    assert len(items) > 10
    assert len(set(items)) == len(items)
    # Whole sentences.
    assert [item for item in items if not (item[0].isupper() and item.endswith("."))] == []


def test_the_changelog_has_the_sections_of_keep_a_changelog_in_their_order() -> None:
    order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for version in CHANGELOG.split("\n## ")[1:]:
        sections = re.findall(r"^### (.*)$", version, re.MULTILINE)
        assert sections
        assert sections == [name for name in order if name in sections]
        # Nothing stands outside of them.
        assert "\n- " not in version.partition("\n### ")[0]


def test_every_command_of_the_changelog_is_one_that_works() -> None:
    commands = [" ".join(found.split()) for found in re.findall(r"`(mackerel-otel-server\s[^`]+)`", CHANGELOG)]
    assert len(commands) > 3
    for command in commands:
        words = command.split()[1:]
        _parser(words).parse_args(words)


def test_the_table_of_init_is_what_init_knows() -> None:
    (table,) = (table for table in tables(ENGLISH["docs/deployment"]) if "| target |" in table)
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    assert {target: file.strip("`") for target, file, _ in rows} == {
        target: fragment.file for target, fragment in FRAGMENTS.items()
    }
    for target, _, command in rows:
        fragment = FRAGMENTS[target]
        steps = [step.format(fragment.file, module=Path(fragment.file).stem) for step in fragment.steps]
        assert any(step == command.strip("`") for step in steps), target


def test_the_ports_of_the_page_are_those_of_receive() -> None:
    options = _parser(["receive"]).parse_args(["receive"])
    assert (options.port, web.DEFAULT_PORT) == (4318, 4319)
    assert "MACKEREL_OTEL_ENDPOINT=http://127.0.0.1:4318/v1/traces" in ENGLISH["docs/receiver"]
    assert "at http://127.0.0.1:4319/" in block("sh", "receive --json")
    # The page listens on the remote host's loopback address, and takes any port of the browser's side.
    assert block("sh", "ssh").startswith(f"ssh -L {web.DEFAULT_PORT}:{web.HOST}:{web.DEFAULT_PORT} ")


@pytest.mark.parametrize("page", both("docs/receiver"))
def test_the_made_up_key_is_the_one_of_receive_and_as_long_as_a_real_one(page: str) -> None:
    assert f"`MACKEREL_APIKEY={MADE_UP_KEY}`" in page
    assert len(MADE_UP_KEY) == 44


@pytest.mark.parametrize("page", both("docs/frameworks-and-databases"))
def test_the_oldest_releases_of_frameworks_and_drivers_are_those_that_the_log_and_check_compare(page: str) -> None:
    (table,) = (table for table in tables(page) if "Django REST framework 3" in table)
    # The same driver in two distributions.
    compared = {**frameworks.oldest(), **databases.oldest_releases()}
    assert compared.pop("psycopg2-binary") == compared["psycopg2"]
    shown = {"djangorestframework": "django rest framework"}
    assert dict(re.findall(r"([A-Za-z][\w -]*?) (\d[\d.]+)", table.lower())) == {
        shown.get(name, name.lower()): oldest for name, oldest in compared.items()
    }


def test_the_environment_of_the_oldest_frameworks_has_them() -> None:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", tox["testenv:floors"]["deps"], re.MULTILINE))
    for name, oldest in frameworks.oldest().items():
        # A release of that series: of the first ones, some do not run on Python 3.10, or at all.
        assert f"{pinned[name]}.".startswith(f"{oldest}."), name


def test_the_environment_of_the_oldest_drivers_has_them() -> None:
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", tox["testenv:floors-drivers"]["deps"], re.MULTILINE))
    # The same driver in two distributions.
    pinned["psycopg2"] = pinned["psycopg2-binary"]
    assert databases.oldest_releases().items() <= pinned.items()


def test_the_extra_installs_what_the_settings_look_for() -> None:
    texts = importlib.metadata.requires("mackerel-otel-server") or []
    of_extra = {re.split(r"[><=]", text)[0] for text in texts if 'extra == "standard"' in text.replace("'", '"')}
    assert of_extra == set(STANDARD_PACKAGES)


def test_the_oldest_versions_that_are_tested_are_those_that_are_claimed() -> None:
    # pytest brings tomli where the standard library has no tomllib.
    tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = dict(
        requirement.split(">=")
        for requirement in [*project["dependencies"], *project["optional-dependencies"]["gunicorn"]]
    )
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    oldest = tox["testenv:oldest"]["deps"]
    for name, version in claimed.items():
        assert re.search(rf"^{re.escape(name)}=={re.escape(version)}(\.0)*$", oldest, re.MULTILINE), name
