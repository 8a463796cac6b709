"""The one reader of the files that ``check`` looks at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mackerel_otel_server.cli.inspection.project import files


def test_what_is_no_utf_8_has_a_mark_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"caf\xe9\r\n")
    assert files.content(tmp_path / "a") == b"caf\xe9\r\n"
    assert files.text_or_nothing(tmp_path / "a") == "caf\N{REPLACEMENT CHARACTER}\r\n"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "No such file or directory"),
        ("folder", "it is a folder"),
        ("pipe", "it is no regular file"),
        ("large", "it has more than 1,000,000 bytes"),
        ("a\0b", "that is no name of a file"),
        ("x" * 300, "File name too long"),
        ("file/below", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_read_says_why_and_is_nothing_to_those_who_only_look(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(bytes(files.LARGEST + 1))
    (tmp_path / "file").write_bytes(bytes(files.LARGEST))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(files.UnreadableError) as caught:
        files.content(tmp_path / name)
    assert str(caught.value) == words
    assert files.text_or_nothing(tmp_path / name) == ""
    assert len(files.content(tmp_path / "file")) == files.LARGEST


def test_a_folder_is_entered_for_a_while_and_one_that_is_not_there_never(tmp_path: Path) -> None:
    before = Path.cwd()
    with files.inside(str(tmp_path)):
        assert Path.cwd() == tmp_path
    with files.inside(str(tmp_path / "none")):
        assert Path.cwd() == before
    with pytest.raises(ValueError, match="x"), files.inside(str(tmp_path)):
        raise ValueError("x")
    assert Path.cwd() == before
