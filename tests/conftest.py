from __future__ import annotations

from collections.abc import Iterator

import pytest

from mackerel_otel_server.cli.receiver import Receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """The far end, with Mackerel's manners."""
    with Receiver(api_key="test-key") as receiver:
        yield receiver
