"""Kill processes at random moments, and find out whether every span that had ended arrives."""

from __future__ import annotations

import os
import queue
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

if TYPE_CHECKING:
    from fault_server import FaultServer

PROGRAM = Path(__file__).parent.parent / "apps" / "to_be_killed.py"
AT_ONCE = 3
"""Processes that write, send and adopt at the same time."""
LONGEST_LIFE = 0.25
"""Seconds. Half of the processes live for less than a tenth of this."""
DEADLINE = 60.0


@dataclass
class Seen:
    """What became of the spans.

    Attributes:
        begun: The ids of the root spans that were about to end.
        ended: The ids of those whose end() had returned.
        received: How often each span was received, by id.
        wrong: Spans that are not whole, or came with a resource that is not theirs.
        left: Names of files that are left at the end.
    """

    begun: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    received: Counter[str] = field(default_factory=Counter)
    roots: set[str] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    kills: int = 0
    log: str = ""

    @property
    def lost(self) -> set[str]:
        """Root spans that had ended, and never arrived."""
        return self.ended - self.received.keys()

    @property
    def unknown(self) -> set[str]:
        """Root spans that no process had begun to end."""
        return self.roots - self.begun

    @property
    def twice(self) -> int:
        """How many spans were received more often than once, each time counted."""
        return sum(count - 1 for count in self.received.values())

    def __str__(self) -> str:
        """Say it in one line."""
        return (
            f"{self.kills} kills, {len(self.ended)} root spans ended, {len(self.received)} spans received, "
            f"{len(self.lost)} lost, {len(self.unknown)} unknown, {len(self.wrong)} wrong, {self.twice} twice, "
            f"{len(self.left)} files left"
        )


class Processes:
    """The program, which forks what is to be killed."""

    def __init__(self, tmp_path: Path, env: Mapping[str, str]) -> None:
        self.seen = Seen()
        self._log = tmp_path / "killed.log"
        self._pids: queue.SimpleQueue[int] = queue.SimpleQueue()
        with self._log.open("wb") as log:
            self.program = subprocess.Popen(
                [sys.executable, PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env={**env}
            )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.program.stdout is not None
        for line in self.program.stdout:
            word, value = line.decode().split()
            if word == "pid":
                self._pids.put(int(value))
            else:
                (self.seen.begun if word == "begin" else self.seen.ended).add(value)

    def start(self, threads: int) -> int:
        assert self.program.stdin is not None
        self.program.stdin.write(f"{threads}\n".encode())
        self.program.stdin.flush()
        return self._pids.get(timeout=DEADLINE)

    def end(self) -> None:
        """Let the program, and those of its processes that wait for that, end."""
        assert self.program.stdin is not None
        self.program.stdin.close()
        self.program.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert self.program.stdout is not None
        self.program.stdout.close()
        self.seen.log = self._log.read_text()

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.seen.kills += 1


def kill_at_random(kills: int, tmp_path: Path, env: Mapping[str, str], far_end: FaultServer, seed: int) -> Seen:
    """Kill so many processes, let another one send what they left, and return what became of it.

    Args:
        kills: How many.
        tmp_path: For the log.
        env: What the processes see. The folder of the journals is in it.
        far_end: Takes the spans, or refuses them with a status.
        seed: Of the random numbers.
    """
    random_ = random.Random(seed)
    folder = Path(env["MACKEREL_OTEL_SPOOL"])
    processes = Processes(tmp_path, env)
    living: list[tuple[float, int]] = []
    for _ in range(kills):
        while len(living) >= AT_ONCE:
            due, pid = min(living)
            living.remove((due, pid))
            time.sleep(max(due - time.monotonic(), 0))
            processes.kill(pid)
        life = random_.choice([0.1, 1.0]) * random_.random() * LONGEST_LIFE
        pid = processes.start(random_.choice([1, 1, 2, 4]))
        living.append((time.monotonic() + life, pid))
    for _, pid in living:
        processes.kill(pid)
    # A process may have been killed while it made a file. Others wait for a minute until they tidy that up.
    for hidden in folder.glob(".*"):
        os.utime(hidden, (0, 0))
    processes.start(0)
    deadline = time.monotonic() + DEADLINE
    # Its own file stays until it ends.
    while len(list(folder.iterdir())) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    processes.end()
    seen = processes.seen
    seen.left = [path.name for path in folder.iterdir()]
    _count(seen, far_end)
    return seen


def _count(seen: Seen, far_end: FaultServer) -> None:
    for index, request in enumerate(far_end.requests):
        if far_end.steps[min(index, len(far_end.steps) - 1)].status != HTTPStatus.OK:
            continue
        for resource_spans in ExportTraceServiceRequest.FromString(request.data).resource_spans:
            (pid,) = {one.value.int_value for one in resource_spans.resource.attributes if one.key == "process.pid"}
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    span_id = span.span_id.hex()
                    seen.received[span_id] += 1
                    own = {one.key: one.value for one in span.attributes}
                    scope = scope_spans.scope.name
                    is_root = span.name == "root"
                    if is_root:
                        seen.roots.add(span_id)
                    if (
                        own["test.id"].string_value != span_id
                        or own["test.pid"].int_value != pid
                        or not re.fullmatch("killed" if is_root else "other [0-2]", scope)
                    ):
                        seen.wrong.append(str(span))
