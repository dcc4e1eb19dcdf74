"""How a cohort scales: synthetic CTs by a plain loop, by one worker and by two.

    python Testing/cohort_times.py --cases 40 --spacing 2,2,4 --work DIR

Each worker has one thread, as has the plain loop: so it is the processes that are compared. Printed are the rate
from the first finished case to the last (start-up, which a long cohort forgets, is told apart), how often each worker
loaded the model, the time of a case outside of the network, and the peak memory of the workers after the 5th case
and at the end. Not a test: on 40 cases it runs for a quarter of an hour and more, on a machine left alone.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path
from time import perf_counter

import torch
from DCASegmentationLib.bundle.finding import default_bundle
from DCASegmentationLib.bundle.loading import Bundle
from DCASegmentationLib.cohort.case import OK
from DCASegmentationLib.cohort.ledger import Ledger
from DCASegmentationLib.cohort.run import Cohort, run_cohort
from DCASegmentationLib.cohort.settings import LEDGER, Settings
from DCASegmentationLib.cohort.workers import LocalWorkers, local_client
from DCASegmentationLib.dicom.selection import Rules
from DCASegmentationLib.imaging.writing import write_image
from DCASegmentationLib.inference.allocator import keep_freed_memory
from DCASegmentationLib.inference.options import SegmentOptions
from DCASegmentationLib.inference.segmenter import Segmenter
from DCASegmentationLib.job import Job, segment_to_folder
from DCASegmentationLib.phantom.case import generate

MEMORY = int(4e9)
FIRST_SEED = 900_000


def make_input(folder: Path, cases: int, spacing: tuple[float, float, float]) -> None:
    """Phantoms of seeds no training uses, each in a folder of its own; those that are there are kept."""
    for number in range(cases):
        target = folder / f"{number:03d}" / "ct.nii.gz"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(generate(FIRST_SEED + number, spacing, "LPS").ct, target)


def plain_loop(folder: Path, out: Path, bundle: Bundle, options: SegmentOptions) -> list[float]:
    """Seconds of each case when one process does one after the other."""
    keep_freed_memory()
    torch.set_num_threads(1)
    segmenter = Segmenter(bundle, "cpu")
    seconds = []
    for file in sorted(folder.rglob("ct.nii.gz")):
        start = perf_counter()
        segment_to_folder(Job(file, out / file.parent.name, bundle, options, "cpu"), segmenter=segmenter)
        seconds.append(perf_counter() - start)
    return seconds


def cohort(folder: Path, out: Path, bundle: Bundle, options: SegmentOptions, workers: int) -> dict[str, float]:
    """Run a cohort with so many workers; figures of it."""
    settings = Settings(str(out), str(bundle.folder), bundle.weights.sha256, options, "cpu", threads=1)
    whole = Cohort(folder, settings, Rules(), bundle.metadata.vocabulary, bundle.metadata.name)
    finished: list[float] = []
    start = perf_counter()

    def tick(state) -> None:
        done = state.counts.get(OK, 0)
        finished.extend([perf_counter() - start] * (done - len(finished)))

    run_cohort(whole, lambda: local_client(LocalWorkers(workers, 1, MEMORY), 0), lambda *_: None, tick)
    ledger = Ledger(out / LEDGER)
    done = [entry.outcome for entry in ledger.entries() if entry.outcome and entry.outcome.status == OK]
    ledger.close()
    # A worker's peak never falls, so its n-th case has its n-th smallest.
    peaks: dict[str, list[float]] = {}
    for each in sorted(done, key=lambda each: each.peak_mb):
        peaks.setdefault(each.worker, []).append(each.peak_mb)
    by_worker: dict[str, int] = {}
    for each in done:
        by_worker[each.worker] = max(by_worker.get(each.worker, 0), each.loads)
    return {
        "cases": len(done),
        "first result (s)": finished[0],
        "whole run (s)": perf_counter() - start,
        "cases per hour": 3600 * (len(finished) - 1) / (finished[-1] - finished[0]),
        "seconds per case outside the network": statistics.median(
            each.seconds["total"] - each.seconds["network"] for each in done
        ),
        "workers": len(by_worker),
        "model loads of a worker": max(by_worker.values()),
        "peak MB of a worker after its 5th case": max(each[min(4, len(each) - 1)] for each in peaks.values()),
        "peak MB of a worker at the end": max(each[-1] for each in peaks.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--spacing", default="2,2,4")
    parser.add_argument("--work", type=Path, required=True, help="folder for input (kept) and output (made anew)")
    arguments = parser.parse_args()
    x, y, z = map(float, arguments.spacing.split(","))
    folder = arguments.work / f"in-{arguments.spacing}"
    make_input(folder, arguments.cases, (x, y, z))
    bundle = Bundle.load(default_bundle())
    options = SegmentOptions()
    for name in ("loop", "one", "two"):
        shutil.rmtree(arguments.work / name, ignore_errors=True)
        (arguments.work / name).mkdir()
    loop = plain_loop(folder, arguments.work / "loop", bundle, options)
    print(f"plain loop: {3600 / statistics.mean(loop[1:]):.1f} cases per hour, {loop[0]:.1f} s for the first")
    rates = []
    for name, workers in (("one", 1), ("two", 2)):
        shutil.rmtree(arguments.work / name)
        figures = cohort(folder, arguments.work / name, bundle, options, workers)
        rates.append(figures["cases per hour"])
        print(f"{workers} worker{'s' if workers > 1 else ''}:")
        for what, value in figures.items():
            print(f"  {what}: {value:.1f}")
    print(f"two workers are {rates[1] / rates[0]:.2f} times as fast as one")
    print(f"one worker takes {(3600 / rates[0]) / statistics.mean(loop[1:]) - 1:+.1%} time per case against the loop")


if __name__ == "__main__":
    main()
