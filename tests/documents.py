"""The READMEs, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mackerel_otel_server.cli.fragments import FRAGMENTS

ROOT = Path(__file__).parents[1]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
JAPANESE = (ROOT / "README.ja.md").read_text(encoding="utf-8")
READMES = [pytest.param(ENGLISH, id="en"), pytest.param(JAPANESE, id="ja")]


def blocks(text: str, language: str = r"\w*") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


def block(language: str, words: str) -> str:
    """Return the one code block that holds these words."""
    (block,) = (block for block in blocks(ENGLISH, language) if words in block)
    return block


def steps() -> set[str]:
    """Return what ``init`` says that is to be typed; other tests start each fragment that way."""
    return {
        step.format(fragment.file, module=Path(fragment.file).stem).partition("   (")[0]
        for fragment in FRAGMENTS.values()
        for step in fragment.steps
    }
