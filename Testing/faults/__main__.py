"""``python -m Testing.faults``: see the package."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

# One thread, before any library asks: the processes are forked.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[_name] = "1"

from .running import Harness


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m Testing.faults", description=sys.modules[__package__].__doc__)
    parser.add_argument("--hours", type=float, default=0.0, help="inject random faults for so long; else one sweep")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the sweep")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="names of workloads, such as bundle or segment")
    parser.add_argument("--record", type=Path, help="append each fault to this file; what it holds is counted too")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dca-faults-") as place:
        harness = Harness(Path(place), given.seed, given.only, given.record)
        harness.prepare()
        if given.hours:
            harness.random_faults(time.monotonic() + given.hours * 3600)
        else:
            harness.sweep(time.monotonic() + given.minutes * 60)
        print("\n".join(harness.table.lines()))
    return 1 if harness.table.failures else 0


if __name__ == "__main__":
    sys.exit(main())
