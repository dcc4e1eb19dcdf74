"""Kills workers of ``dca cohort`` at random moments: afterwards every case is accounted for.

    python -m Testing.faults.cohort_kills --kills 200 --seed 1

Runs the command on a folder of small synthetic CTs with two workers, kills one of them again and again, begins the
command anew where it has ended, and at last lets it run through. Prints how often workers were killed, how often the
command gave up ("All workers have stopped"), and the counts of the ledger.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import SimpleITK as sitk

from dcaseg.models.bundle import save_bundle

from .workloads import NEW, image, leftovers, metadata, network


def write_cases(folder: Path, count: int) -> None:
    """Noise in the range of CT; what is found in it means nothing."""
    folder.mkdir()
    for number in range(count):
        sitk.WriteImage(image(number, 40), str(folder / f"{number:04}.nii.gz"))


def start(archive: Path, out: Path, bundle: Path) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "dcaseg.cli", "cohort", str(archive), "-o", str(out), "--workers", "2"),
        *("--bundle", str(bundle), "--device", "cpu", "--backend", "eager", "--overlap", "0", "--no-review"),
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def workers_of(pid: int) -> list[psutil.Process]:
    found = []
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "spawn_main" in " ".join(process.cmdline()):
                    found.append(process)
    return found


def counts(out: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(out / "cohort.sqlite", timeout=20)) as connection:
        return dict(connection.execute("SELECT status, COUNT(*) FROM cases GROUP BY status"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m Testing.faults.cohort_kills")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--cases", type=int, default=0, help="two for each kill, if not given")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most-seconds", type=float, default=12.0, help="between two kills")
    given = parser.parse_args()
    dice = random.Random(given.seed)
    number = given.cases or 2 * given.kills
    killed, gave_up, runs = 0, 0, 1
    with tempfile.TemporaryDirectory(prefix="dca-cohort-kills-") as name:
        place = Path(name)
        write_cases(place / "in", number)
        bundle = save_bundle(place / "bundle", network(), metadata(NEW)).folder
        process = start(place / "in", place / "out", bundle)
        while killed < given.kills:
            time.sleep(dice.uniform(0, given.max_seconds))
            if process.poll() is not None:
                said = process.communicate()[0]
                gave_up += "workers have stopped" in said
                if (place / "out").exists() and not counts(place / "out").get("pending"):
                    print(f"There were too few cases for {given.kills} kills.", file=sys.stderr)
                    break
                process, runs = start(place / "in", place / "out", bundle), runs + 1
                continue
            if workers := workers_of(process.pid):
                with contextlib.suppress(psutil.Error):
                    dice.choice(workers).kill()
                    killed += 1
        said = process.communicate()[0]
        gave_up += "workers have stopped" in said
        # What failed because its worker was killed again and again is tried again by the same command.
        for _ in range(3):
            found = counts(place / "out")
            if found == {"ok": number}:
                break
            last = start(place / "in", place / "out", bundle)
            said, runs = last.communicate()[0], runs + 1
            gave_up += "workers have stopped" in said
        found, left = counts(place / "out"), leftovers(place / "out")
        folders = len(os.listdir(place / "out" / "cases"))  # noqa: PTH208
    print(f"{killed} workers killed in {runs} runs, which gave up {gave_up} times; {number} cases: {found}, ")
    print(f"{folders} folders of results, {len(left)} left over.")
    return 0 if found == {"ok": number} and folders == number and not left and not gave_up else 1


if __name__ == "__main__":
    sys.exit(main())
