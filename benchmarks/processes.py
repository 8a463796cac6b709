"""What Linux knows about a process: its children, CPU time, memory and age."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Return the processes whose parent is ``pid``, without those that have ended."""
    numbers = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return sorted(number for number in numbers if (stat := _stat(number)) and stat[0] != "Z" and int(stat[1]) == pid)


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or only waits for its parent to notice."""
    stat = _stat(pid)
    return stat is None or stat[0] == "Z"


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of all threads, those that have ended included, in nanosecond steps."""
    # clock_getcpuclockid(3), which Python does not have: /proc/PID/stat counts in steps of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)


def pss_bytes(pid: int) -> int:
    """Return the proportional set size: a page that n processes share counts 1/n in each."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def age_seconds(pid: int) -> float:
    """Return the time since a process was forked, in steps of 10 ms."""
    stat = _stat(pid)
    if stat is None:
        raise ProcessLookupError(f"process {pid} has ended")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / _TICKS_PER_SECOND


def other_cpu_seconds() -> float:
    """Return the time that all cores spent on others than this process and its children that have been waited for.

    The time that a hypervisor took away counts, too.
    """
    # proc_stat(5). Time in irq and softirq is left out: most of it is this benchmark's own loopback traffic.
    user, nice, system, _idle, _iowait, _irq, _softirq, steal = map(int, _first_line("/proc/stat").split()[1:9])
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    return (user + nice + system + steal) / _TICKS_PER_SECOND - own


def _first_line(path: str) -> str:
    return Path(path).read_text().partition("\n")[0]


def _stat(pid: int) -> list[str] | None:
    """Return /proc/PID/stat from the state on, which is proc(5)'s field 3."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
