"""The ini files of uWSGI are read as uWSGI itself reads them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mackerel_otel_server.cli.inspection.findings import NotReadError
from mackerel_otel_server.cli.inspection.uwsgi import ini as uwsgi_ini

FILES = {
    "main.ini": """
; a comment
# another one
[other]
master = true
[uwsgi]
master
chdir = %d
name = hello
name = never
env = A=%(name)-x
env=B=$(GREETING) $(NO_SUCH_VARIABLE)
set-ph = ph=bar
env = C=%(ph) %(later) %(undefined)
later = comes later
module=x:y ; no comment
\tstats   =   /tmp/%n.sock \t
ini = second.ini
ini = second.ini:third
include = second.ini
if-env = GREETING=hi
enable-threads = true
endif =
if-not-env = GREETING
lazy-apps = true
endif =
if-exists = second.ini
env = D=%(_)
end =
if-opt = name=hello
env = E=1
end-if =
if-not-file = second.ini
env = F=1
endif =
if-reload =
env = G=1
endif =
for = a b
mount = /%(_)=app%(_).py
endfor =
for-times = 2
env = T%(_)=%(_)
endfor =
env = I=@(content)|@(%d/content)@($(CONTENT))@(empty)
env = J=@(placeholders) %(chained)
set-ph = chained=$(GREETING)
env = K=$(GREE%(ting)) @(content
env = L = x
ting = TING
set = plain=$(GREETING)
env = M=%(plain)
if-env = $(CONTENT)
env = N=1
endif =
if-opt = plain=$(GREETING)
env = O=1
endif =
for = $(GREETING) %(name)
env = P%(_)=1
endfor =
env = H=%%x %u %g %s %p %e %c %v %o %h
force-no-loop = 1
key with space
quoted = "abc"
[uwsgi]
again = 1
""",
    "content": "two\nlines\n\n",
    "empty": "",
    "placeholders": "%(name) %(ph) $(GREETING)\n",
    "second.ini": "[uwsgi]\nthreads = 3\n[third]\nprocesses=7\nini = :fourth\n[fourth]\ncheaper = 1",
}


def test_every_rule_is_uwsgi_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    environ = {**os.environ, "GREETING": "hi", "CONTENT": "content"}
    result = subprocess.run(
        [str(Path(sys.executable).with_name("pyuwsgi")), "--ini", "main.ini", "--show-config", "--no-server"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    shown = re.search(r"\[uwsgi\]\nini = main\.ini\n(.*)^show-config", result.stdout, re.DOTALL | re.MULTILINE)
    assert shown, result.stdout
    ini = uwsgi_ini.read("main.ini", environ)
    assert "\n".join(f"{name} = {value}" for name, value in ini.options) == shown[1].removesuffix("\n")
    assert ini.files == ("main.ini", "second.ini")
    assert ini.not_understood == ()


def read(folder: Path, text: str, **environ: str) -> uwsgi_ini.Ini:
    (folder / "x.ini").write_text(text)
    return uwsgi_ini.read(str(folder / "x.ini"), environ)


def test_the_last_value_counts_and_a_switch_needs_none(tmp_path: Path) -> None:
    ini = read(tmp_path, "[uwsgi]\nmaster\nlazy = off\nthreads = 1\nthreads = 2\nx = no\nx = 1\n")
    assert ini.last("threads") == "2"
    assert ini.all("threads", "lazy") == ["off", "1", "2"]
    assert [ini.is_on(name) for name in ("master", "lazy", "x", "absent")] == [True, False, True, False]


def test_env_and_unenv_make_the_environment_of_the_workers(tmp_path: Path) -> None:
    ini = read(tmp_path, "[uwsgi]\nenv = A=1=2\nenv = B=x\nunenv = B\nunenv = C\nenv = E\nenv = D = 1\n")
    assert ini.environment({"B": "0", "C": "0", "D": "0", "E": "0"}) == {"A": "1=2", "D": "0"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("if-plugin = python\nimport = x\nendif =", "if-plugin = python"),
        ("for-readline = /etc/hostname\nimport = x\nendfor =", "for-readline = /etc/hostname"),
        ("yaml = more.yaml", "yaml = more.yaml"),
        ("envdir = /etc/env", "envdir = /etc/env"),
        ("if-env = X\nelse =\nendif =", "else"),
        ("env = A=@(http://user:password@host/)", "@(http://…)"),
        ("env = A=@(/dev/zero)", "@(/dev/zero)"),
    ],
)
def test_what_only_uwsgi_can_understand_is_said(tmp_path: Path, line: str, words: str) -> None:
    ini = read(tmp_path, f"[uwsgi]\n{line}\n")
    assert len(ini.not_understood) == 1
    assert words in ini.not_understood[0]
    assert ini.last("import") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[other]\nmaster = true\n", "has no section [uwsgi]"),
        ("", "has no section [uwsgi]"),
        ("[uwsgi]\ninclude = no-such.ini\n", "'no-such.ini' cannot be read (No such file or directory)"),
        ("[uwsgi]\ninclude = %p\n", "includes itself"),
        ("[uwsgi]\nname = x\nini = %(name).ini\n", "'%(name).ini' cannot be read"),
        ("[uwsgi]\nenv = A=@(no-such-file)\n", "'no-such-file' by @(no-such-file), which cannot be read (No such file"),
    ],
)
def test_a_file_that_uwsgi_could_not_read_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(NotReadError) as caught:
        read(tmp_path, text)
    assert words in caught.value.finding.seen
    assert caught.value.finding.cure


def test_a_folder_and_bytes_that_are_no_text_are_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(NotReadError, match="it is a folder"):
        uwsgi_ini.read(str(tmp_path), {})
    (tmp_path / "x.ini").write_bytes(b"[uwsgi]\nenv = A=\xff\n")
    assert uwsgi_ini.read(str(tmp_path / "x.ini"), {}).environment({}) == {"A": "\udcff"}
