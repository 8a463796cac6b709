"""Thousands of processes killed at random moments: does every span that had ended arrive?

    pip install . -r benchmarks/requirements.txt
    python benchmarks/random_kills.py --kills 3000

Prints a line for each round: how many processes were killed, what they had ended, and what arrived. Fails if a span
was lost, if one arrived that no process had begun, or if a file stays in the folder of the journals. In every second
round the far end refuses some of the requests. Linux only.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from fault_server import FaultServer, accepted, refused
from killing import kill_at_random

PER_ROUND = 200


def main() -> int:
    """Run the rounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    is_well = True
    for number in range(max(given.kills // PER_ROUND, 1)):
        steps = [accepted()] if number % 2 == 0 else [*[accepted()] * 30, refused(503, "busy")] * 10_000
        with tempfile.TemporaryDirectory() as folder, FaultServer(*steps) as far_end:
            env = os.environ | {
                "MACKEREL_OTEL_ENDPOINT": far_end.url,
                "MACKEREL_APIKEY": "test-key",
                "OTEL_SERVICE_NAME": "shop",
                "MACKEREL_OTEL_SPOOL": f"{folder}/spool",
                "OTEL_BSP_SCHEDULE_DELAY": "30",
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "64",
                "OTEL_BSP_MAX_QUEUE_SIZE": "200000",
            }
            seen = kill_at_random(PER_ROUND, Path(folder), env, far_end, given.seed + number)
            print(seen, flush=True)
            if seen.lost or seen.unknown or seen.wrong or seen.left:
                is_well = False
                print(seen.log)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
