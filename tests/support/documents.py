"""The READMEs, the pages of docs/ and CONTRIBUTING.md, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mackerel_otel_server.cli.init import FRAGMENTS

ROOT = Path(__file__).parents[2]


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


NAMES = ["README", *sorted(f"docs/{file.stem}" for file in (ROOT / "docs").glob("*.md") if ".ja" not in file.name)]
"""Every page that is there in English and in Japanese, without the end of its file's name."""
ENGLISH = {name: read(f"{name}.md") for name in NAMES}
JAPANESE = {name: read(f"{name}.ja.md") for name in NAMES}
PAIRS = [pytest.param(ENGLISH[name], JAPANESE[name], id=name) for name in NAMES]
CONTRIBUTING = read("CONTRIBUTING.md")
"""Is there in English only."""
EVERYTHING = "\n".join([*ENGLISH.values(), CONTRIBUTING])
"""All that is there in English, but for CHANGELOG.md and SECURITY.md."""


def both(name: str) -> list[object]:
    """Return a page in both languages, for tests that take one after the other."""
    return [pytest.param(ENGLISH[name], id="en"), pytest.param(JAPANESE[name], id="ja")]


def blocks(text: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def block(language: str, words: str) -> str:
    """Return the one code block that holds these words; the README and a page may have the same one."""
    (block,) = {block for block in blocks(EVERYTHING, language) if words in block}
    return block


def steps() -> set[str]:
    """Return what ``init`` says that is to be typed; other tests start each fragment that way."""
    return {
        step.format(fragment.file, module=Path(fragment.file).stem).partition("   (")[0]
        for fragment in FRAGMENTS.values()
        for step in fragment.steps
    }
