"""What runs before and after a framework's methods."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import pytest

from mackerel_otel_server.tracing.framework import after, before


class Framework:
    def handle(self) -> str:
        raise LookupError("no page")

    async def handle_async(self) -> str:
        raise LookupError("no page")


def run(framework: Framework, name: str) -> Any:
    answer = getattr(framework, name)()
    return asyncio.run(answer) if name == "handle_async" else answer


@pytest.mark.parametrize(("put", "name"), [(before, "handle"), (before, "handle_async"), (after, "handle")])
def test_a_traceback_names_the_method_and_not_what_runs_around_it(put: Any, name: str) -> None:
    cls: Any = type("Framework", (Framework,), {})
    put(cls, name, lambda *_: None, "nothing")
    with pytest.raises(LookupError) as raised:
        run(cls(), name)
    names = [frame.name for frame in traceback.extract_tb(raised.tb)]
    assert names[-2:] == [name, name]


def fail(*_: Any) -> None:
    raise RuntimeError


@pytest.mark.parametrize("name", ["handle", "handle_async"])
def test_what_fails_before_a_method_does_not_reach_the_framework(name: str) -> None:
    cls: Any = type("Framework", (Framework,), {})
    before(cls, name, fail, "nothing")
    with pytest.raises(LookupError):
        run(cls(), name)
