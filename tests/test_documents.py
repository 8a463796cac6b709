"""What the documents claim is what the code does."""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.metadata
import os
import re
import sys
from pathlib import Path

import pytest
from documents import ENGLISH, JAPANESE, READMES, ROOT, block, blocks, steps, tables

import mackerel_otel_server
from mackerel_otel_server.cli import _parser
from mackerel_otel_server.cli.fragments import FRAGMENTS
from mackerel_otel_server.cli.receiver import web
from mackerel_otel_server.cli.receiver.addresses import MADE_UP_KEY
from mackerel_otel_server.pipeline.answer import UNCONFIRMED, Cause
from mackerel_otel_server.settings.catalogue import CATALOGUE
from mackerel_otel_server.tracing import frameworks
from mackerel_otel_server.tracing.databases import floors


def _commands(text: str) -> list[str]:
    """Return the code blocks without their comments, which are translated."""
    return [re.sub(r"\s+#.*", "", block) for block in blocks(text, "(?:sh|ini|python)")]


def _tables(text: str) -> list[int]:
    return [len(table.splitlines()) for table in tables(text)]


def test_both_readmes_have_the_same_sections_commands_and_tables() -> None:
    levels = [[len(marks) for marks in re.findall(r"^(#+) ", text, re.MULTILINE)] for text in (ENGLISH, JAPANESE)]
    assert levels[0] == levels[1]
    assert _commands(ENGLISH) == _commands(JAPANESE)
    assert _tables(ENGLISH) == _tables(JAPANESE)
    names = [set(re.findall(r"(?:OTEL|MACKEREL)_[A-Z_]+", text)) for text in (ENGLISH, JAPANESE)]
    assert names[0] == names[1]


def _without_signal(name: str) -> str:
    """Return ``OTEL_EXPORTER_OTLP_TIMEOUT`` for ``OTEL_EXPORTER_OTLP_TRACES_TIMEOUT``."""
    return name.replace("_OTLP_TRACES_", "_OTLP_")


@pytest.mark.parametrize("readme", READMES)
def test_the_table_of_variables_is_the_catalogue(readme: str) -> None:
    table = next(table for table in tables(readme) if "`MACKEREL_APIKEY_FILE`" in table)
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    defaults = {name: variable.default for variable in CATALOGUE for name in map(_without_signal, variable.names)}
    # Django's own, and what curl and urllib read in lower case, too.
    names = {name for name in defaults if name.isupper() and name != "DJANGO_SETTINGS_MODULE"}
    documented: set[str] = set()
    for first, _, default in rows:
        cell = first.replace("[TRACES_]", "").replace("`…CLIENT", "`OTEL_EXPORTER_OTLP_CLIENT")
        in_row = {_without_signal(name) for name in re.findall(r"`([A-Z][A-Z_]+)`", cell)}
        for start in re.findall(r"`(OTEL_[A-Z]+_)…_LIMIT`", cell):
            in_row |= {name for name in names if name.startswith(start) and name.endswith("_LIMIT")}
        documented |= in_row
        # In words of its own, in either language, or the same as another's.
        worded = {"OTEL_SERVICE_NAME", "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS", "OTEL_EXPORTER_OTLP_ENDPOINT"}
        if "_LIMIT`" not in cell:
            for name in in_row - worded - {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"}:
                assert defaults[name] in default, name
    assert documented == names


FIRST_CELL = re.compile(r"^\| (`.*?) \| ", re.MULTILINE)


def _messages(readme: str) -> list[str]:
    """Return what the tables of troubleshooting have in their first column, with ``…`` for what varies."""
    start = "## Troubleshooting" if readme == ENGLISH else "## トラブルシューティング"
    section = readme[readme.index(start) : readme.index("## How it is built" if readme == ENGLISH else "## 構成")]
    messages = [message for cell in FIRST_CELL.findall(section) for message in re.findall(r"`(.*?)`", cell)]
    return messages + re.findall(r"`((?:tracing is off|the endpoint takes)[^`]*)`", section)


def _longest(text: str) -> str:
    """Return the longest part of a message that does not vary."""
    return max(re.split(r"…|\(|\)|\d+|gunicorn\.conf\.py", text), key=len).strip()


def _template(node: ast.AST) -> str:
    """Return a string of the source with ``…`` where something is put in; empty where it is no string."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return re.sub(r"%[sdr]", "…", node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _templates() -> dict[str, str]:
    """Return every message that the package writes into a log, and the file that it comes from."""
    package = Path(mackerel_otel_server.__file__).parent
    found: dict[str, str] = {cause.value: "answer.py" for cause in Cause} | {UNCONFIRMED: "answer.py"}
    for file in package.rglob("*.py"):
        if file.relative_to(package).parts[0] == "cli":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if re.search(r"(^|\.)log\.(info|warning|error|exception)$|^write$|\.resolve$|warnings\.append$", called):
                position = 0
            elif called.endswith(".problem"):
                position = 1
            else:
                continue
            if len(node.args) > position and len(text := _template(node.args[position])) > 10:
                found[text] = file.name
    return found


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
    # The line on top of the README; and a framework that cannot be patched, with a traceback.
    known += ["sends traces as"]
    alone = {"… is not traced"}
    unexplained = {
        text: file for text, file in templates.items() if not any(words in text for words in known) | (text in alone)
    }
    assert unexplained == {}


@pytest.mark.parametrize("readme", READMES)
def test_the_picture_of_the_house_has_every_module(readme: str) -> None:
    package = Path(mackerel_otel_server.__file__).parent
    (picture,) = (block for block in blocks(readme, "text") if "http_options.py" in block)  # in both languages
    folders = ("settings", "pipeline", "tracing")
    named = set(re.findall(r"\w+\.py", picture))
    assert named == {file.name for file in package.glob("*.py")}
    within = {entry.stem for folder in folders for entry in (package / folder).iterdir() if entry.name[0] != "_"}
    missing = {name for name in within if not re.search(rf"\b{name}\b", picture, re.ASCII)}
    assert missing == set()


NOT_RUN = {
    ("sh", "scripts/demo"): "it makes the checkout's own .venv; test_cli_demo.py runs the command that it ends with",
    ("sh", "scripts/test"): "it runs these tests",
    ("text", "http_options.py"): "the picture of the house, which a test compares with the modules",
    ("python", "import mackerel_otel_server\n\nmackerel_otel_server.instrument()\n"): "the test of the call has it",
    ("sh", "ssh -L"): "it needs another machine; the test of the ports has its numbers",
    ("text", "Worker 12974"): "test_cli_demo.py looks at the trees of a real demo",
}
"""Blocks that no test takes from the README, and why."""


def test_every_code_block_of_the_readme_is_taken_by_a_test() -> None:
    tests = ast.parse(Path(__file__).with_name("test_documents_run.py").read_text(encoding="utf-8"))
    taken = {
        (str(ast.literal_eval(node.args[0])), str(ast.literal_eval(node.args[1])))
        for node in ast.walk(tests)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "block"
    }
    assert len(taken) > 10
    languages = set(re.findall(r"^```(\w+)$", ENGLISH, re.MULTILINE))
    left = [
        (language, found)
        for language in languages
        for found in blocks(ENGLISH, language)
        if not any(language == other and words in found for other, words in taken | set(NOT_RUN))
    ]
    assert left == []
    for language, words in NOT_RUN:
        assert any(words in found for found in blocks(ENGLISH, language)), words


PROSE = re.sub(r"^```.*?^```", "", ENGLISH, flags=re.MULTILINE | re.DOTALL)
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
        # The tests use it, so it is installed here.
        assert importlib.metadata.version(words[2])
    elif "/" in words[0]:
        assert os.access(ROOT / words[0], os.X_OK)
    elif command == "gunicorn -e":
        assert "Do not give the key with" in ENGLISH
    else:
        # In a block, which a test takes, or said by a file of `init`, which tests start.
        fragments = "".join(fragment.read() for fragment in FRAGMENTS.values())
        assert command in steps() or command in fragments or any(command in block for block in blocks(ENGLISH, "sh"))


DOCUMENTS = ("README.md", "README.ja.md", "CHANGELOG.md", "SECURITY.md")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def _anchors(text: str) -> set[str]:
    """Return what GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_link_within_the_repository_leads_somewhere(document: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", (ROOT / document).read_text(encoding="utf-8"))
    broken = []
    for link in links:
        if re.match(r"https://", link):
            continue
        name, _, anchor = link.partition("#")
        file = ROOT / (name or document)
        if not file.is_file() or (anchor and anchor not in _anchors(file.read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("document", [*DOCUMENTS, *(f"conf_examples/{one.file}" for one in FRAGMENTS.values())])
def test_every_variable_that_is_named_is_one_that_is_understood(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8").replace("[TRACES_]", "")
    known = {name for variable in CATALOGUE for name in variable.names}
    # Not the beginning of several, such as `OTEL_SPAN_…_LIMIT`.
    assert set(re.findall(r"\b(?:OTEL|MACKEREL)_[A-Z_]*[A-Z](?![A-Z_…*])", text)) - known == set()


@pytest.mark.parametrize("readme", READMES)
def test_every_file_of_the_repository_that_is_named_is_there(readme: str) -> None:
    # Others whose name begins with a dot, such as .venv, are made by commands.
    ours = [entry.name for entry in ROOT.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    folders = "|".join(map(re.escape, [*ours, ".ci", ".github"]))
    named = set(re.findall(rf"(?:^|[`\s(])((?:{folders})/[\w./-]*)", readme, re.MULTILINE))
    assert {"scripts/demo", ".ci/run", "mackerel_otel_server/__init__.py", "conf_examples/"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_changelog_begins_with_this_version_and_says_nothing_twice() -> None:
    versions = [line.split()[1] for line in re.findall(r"^## .*$", CHANGELOG, re.MULTILINE)]
    assert versions[0] == mackerel_otel_server.__version__
    assert len(set(versions)) == len(versions)
    text = re.sub(r"^#.*\n", "", CHANGELOG, flags=re.MULTILINE)
    items = [" ".join(item.split()) for item in re.split(r"^- ", text, flags=re.MULTILINE)[1:]]
    assert len(items) > 10
    assert len(set(items)) == len(items)
    # Whole sentences.
    assert [item for item in items if not (item[0].isupper() and item.endswith("."))] == []


def test_every_command_of_the_changelog_is_one_that_works() -> None:
    commands = [" ".join(found.split()) for found in re.findall(r"`(mackerel-otel-server\s[^`]+)`", CHANGELOG)]
    assert len(commands) > 3
    for command in commands:
        words = command.split()[1:]
        _parser(words).parse_args(words)


def test_the_table_of_init_is_what_init_knows() -> None:
    (table,) = (table for table in tables(ENGLISH) if "| target |" in table)
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()[2:]]
    assert {target: file.strip("`") for target, file, _ in rows} == {
        target: fragment.file for target, fragment in FRAGMENTS.items()
    }
    for target, _, command in rows:
        fragment = FRAGMENTS[target]
        steps = [step.format(fragment.file, module=Path(fragment.file).stem) for step in fragment.steps]
        assert any(step == command.strip("`") for step in steps), target


def test_the_ports_of_the_readme_are_those_of_receive() -> None:
    options = _parser(["receive"]).parse_args(["receive"])
    assert (options.port, web.DEFAULT_PORT) == (4318, 4319)
    assert "MACKEREL_OTEL_ENDPOINT=http://127.0.0.1:4318/v1/traces" in ENGLISH
    assert "at http://127.0.0.1:4319/" in block("sh", "receive --json")
    # The page is the remote host's loopback's, and takes any port of the browser's.
    assert block("sh", "ssh").startswith(f"ssh -L {web.DEFAULT_PORT}:{web.HOST}:{web.DEFAULT_PORT} ")


@pytest.mark.parametrize("readme", READMES)
def test_the_made_up_key_is_the_one_of_receive_and_as_long_as_a_real_one(readme: str) -> None:
    assert f"`MACKEREL_APIKEY={MADE_UP_KEY}`" in readme
    assert len(MADE_UP_KEY) == 44


@pytest.mark.parametrize("readme", READMES)
def test_the_oldest_releases_of_frameworks_and_drivers_are_those_that_the_log_and_check_compare(readme: str) -> None:
    (table,) = (table for table in tables(readme) if "Django REST framework 3" in table)
    # The same driver in two distributions.
    compared = {**frameworks.oldest(), **floors.OLDEST}
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
