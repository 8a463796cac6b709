"""Whatever moment a process is killed at, its spans arrive: while it writes, sends, or sends what others left."""

from __future__ import annotations

from pathlib import Path

import pytest
from fault_server import FaultServer, Step, accepted, refused
from killing import kill_at_random
from servers import environment

KILLS = 60
BATCH = 64


@pytest.mark.parametrize(
    "steps",
    [[accepted()], [*[accepted()] * 30, refused(503, "busy")] * 1_000],
    ids=["healthy", "busy now and then"],
)
def test_every_span_that_had_ended_arrives_and_no_file_stays(tmp_path: Path, steps: list[Step]) -> None:
    folder = tmp_path / "spool"
    with FaultServer(*steps) as far_end:
        env = environment(
            MACKEREL_OTEL_ENDPOINT=far_end.url,
            MACKEREL_APIKEY="test-key",
            OTEL_SERVICE_NAME="shop",
            MACKEREL_OTEL_SPOOL=str(folder),
            OTEL_BSP_SCHEDULE_DELAY="30",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE=str(BATCH),
            OTEL_BSP_MAX_QUEUE_SIZE="200000",
        )
        seen = kill_at_random(KILLS, tmp_path, env, far_end, seed=len(steps))
    assert not seen.lost, f"{seen}\n{seen.log}"
    assert not seen.unknown, seen
    assert not seen.wrong, f"{seen}\n{seen.wrong[:3]}"
    assert not seen.left, f"{seen}\n{seen.left}\n{seen.log}"
    assert seen.twice <= seen.kills * BATCH, seen
    assert len(seen.ended) > KILLS, seen
