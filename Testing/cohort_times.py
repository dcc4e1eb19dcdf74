"""How a cohort scales: synthetic CTs by a plain loop, by one worker and by two.

    python Testing/cohort_times.py --cases 40 --spacing 3,3,4 --work DIR

The loop and each worker have one thread and, with --pin, one core (else a worker that reads or writes one case while
another is in the network takes part of a second). Each segments one case more before the clock starts: what loading
and first calls cost is told apart. Printed are the rate; the CPU time of a case in all processes, the program with
Dask's scheduler and the ledger among them, which says more than the rate where other work shares the machine; how often
each worker loaded the model; and the peak memory of workers and program after the 5th case and at the end. Not a test.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time

import psutil
import torch
from DCASegmentationLib.bundle.finding import default_bundle
from DCASegmentationLib.bundle.loading import Bundle
from DCASegmentationLib.cohort.case import OK
from DCASegmentationLib.cohort.finding import find
from DCASegmentationLib.cohort.ledger import Ledger
from DCASegmentationLib.cohort.memory import peak_mb
from DCASegmentationLib.cohort.run import Cohort, run_cohort
from DCASegmentationLib.cohort.settings import CASES, LEDGER, Settings
from DCASegmentationLib.cohort.state import State
from DCASegmentationLib.cohort.work import process
from DCASegmentationLib.cohort.workers import LocalWorkers, local_client
from DCASegmentationLib.dicom.selection import Rules
from DCASegmentationLib.imaging.writing import write_image
from DCASegmentationLib.inference.allocator import keep_freed_memory
from DCASegmentationLib.inference.options import SegmentOptions
from DCASegmentationLib.inference.segmenter import Segmenter
from DCASegmentationLib.job import Job, segment_to_folder
from DCASegmentationLib.phantom.case import generate
from distributed import Client

MEMORY = int(4e9)
FIRST_SEED = 900_000


def make_input(folder: Path, first: int, cases: int, spacing: tuple[float, float, float]) -> None:
    """Phantoms of seeds no training uses, each in a folder of its own; those that are there are kept."""
    for number in range(first, first + cases):
        target = folder / f"{number:03d}" / "ct.nii.gz"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(generate(FIRST_SEED + number, spacing, "LPS").ct, target)


def plain_loop(folder: Path, warm: Path, out: Path, bundle: Bundle, options: SegmentOptions) -> dict[str, float]:
    """Figures of one process that does one case after the other."""
    keep_freed_memory()
    torch.set_num_threads(1)
    segmenter = Segmenter(bundle, "cpu")

    def segment(file: Path) -> None:
        segment_to_folder(Job(file, out / file.parent.name, bundle, options, "cpu"), segmenter=segmenter)

    segment(warm)
    files = sorted(folder.rglob("ct.nii.gz"))
    start, cpu = perf_counter(), process_time()
    for file in files:
        segment(file)
    return {
        "cases": len(files),
        "cases per hour": 3600 * len(files) / (perf_counter() - start),
        "CPU seconds per case": (process_time() - cpu) / len(files),
    }


def cohort(
    folder: Path, warm: Path, out: Path, bundle: Bundle, options: SegmentOptions, workers: int, pin: bool
) -> dict[str, float]:
    """Figures of a cohort with so many workers."""
    settings = Settings(str(out), str(bundle.folder), bundle.weights.sha256, options, "cpu", threads=1)
    whole = Cohort(folder, settings, Rules(), bundle.metadata.vocabulary, bundle.metadata.name)
    used: dict[str, float] = {}
    finished: list[float] = []
    own_peaks: list[float] = []

    @contextmanager
    def warm_client() -> Iterator[Client]:
        """Every worker has loaded the model and segmented a case; what was used from then on is noted."""
        with local_client(LocalWorkers(workers, 1, MEMORY), 0) as client:
            addresses = list(client.scheduler_info(n_workers=-1)["workers"])
            if pin:
                for core, address in enumerate(addresses):
                    client.run(_keep_to_core, core, workers=[address])
            (case,) = find(warm, out, Rules()).cases
            for address in addresses:
                aside = replace(settings, out=f"{out}-warm-{address.rpartition(':')[2]}")
                (Path(aside.out) / CASES).mkdir(parents=True)
                client.submit(process, case, aside, workers=[address], pure=False).result()
            before, own = sum(client.run(_cpu_seconds).values()), process_time()
            start = perf_counter()
            yield client
            used["seconds"] = perf_counter() - start
            used["workers"] = sum(client.run(_cpu_seconds).values()) - before
            used["program"] = process_time() - own

    def tick(state: State) -> None:
        done = state.counts.get(OK, 0)
        finished.extend([perf_counter()] * (done - len(finished)))
        own_peaks.extend([peak_mb()] * (done - len(own_peaks)))

    run_cohort(whole, warm_client, lambda *_: None, tick)
    ledger = Ledger(out / LEDGER)
    done = [entry.outcome for entry in ledger.entries() if entry.outcome and entry.outcome.status == OK]
    ledger.close()
    # A worker's peak never falls, so its n-th case has its n-th smallest.
    peaks: dict[str, list[float]] = {}
    for each in sorted(done, key=lambda each: each.peak_mb):
        peaks.setdefault(each.worker, []).append(each.peak_mb)
    return {
        "cases": len(done),
        "cases per hour": 3600 * len(done) / used["seconds"],
        "CPU seconds per case": (used["workers"] + used["program"]) / len(done),
        "of these the program's": used["program"] / len(done),
        "wall seconds per case outside the network": statistics.median(
            each.seconds["total"] - each.seconds["network"] for each in done
        ),
        "workers": len(peaks),
        "model loads of a worker": max(each.loads for each in done),
        "peak MB of a worker after its 5th case": max(each[min(4, len(each) - 1)] for each in peaks.values()),
        "peak MB of a worker at the end": max(each[-1] for each in peaks.values()),
        "peak MB of the program after the 5th case": own_peaks[min(4, len(own_peaks) - 1)],
        "peak MB of the program at the end": own_peaks[-1],
    }


def _cpu_seconds() -> float:
    return sum(os.times()[:2])


def _keep_to_core(core: int) -> None:
    for thread in psutil.Process().threads():
        os.sched_setaffinity(thread.id, {core})


def _tell(name: str, figures: dict[str, float]) -> None:
    print(f"{name}:")
    for what, value in figures.items():
        print(f"  {what}: {value:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--spacing", default="3,3,4")
    parser.add_argument("--overlap", type=float, default=None)
    parser.add_argument("--review", action="store_true", help="look for places to check, as dca cohort does")
    parser.add_argument("--bundle", help="folder of the model, else the default one")
    parser.add_argument("--pin", action="store_true", help="bind the loop and each worker to one core (Linux)")
    parser.add_argument("--work", type=Path, required=True, help="folder for input (kept) and output (made anew)")
    arguments = parser.parse_args()
    x, y, z = map(float, arguments.spacing.split(","))
    folder = arguments.work / f"in-{arguments.cases}-{arguments.spacing}"
    make_input(folder, 0, arguments.cases, (x, y, z))
    warm = arguments.work / f"warm-{arguments.spacing}"
    make_input(warm, arguments.cases, 1, (x, y, z))
    bundle = Bundle.load(Path(arguments.bundle) if arguments.bundle else default_bundle())
    options = SegmentOptions(overlap=arguments.overlap, review=arguments.review)
    shutil.rmtree(arguments.work / "out", ignore_errors=True)
    for name in ("loop", "one", "two"):
        (arguments.work / "out" / name).mkdir(parents=True)
    # The workers first: as their parent, this process is then as small as the program itself.
    one, two = (
        cohort(folder, warm, arguments.work / "out" / name, bundle, options, workers, arguments.pin)
        for name, workers in (("one", 1), ("two", 2))
    )
    if arguments.pin:
        _keep_to_core(0)
    loop = plain_loop(folder, next(warm.rglob("ct.nii.gz")), arguments.work / "out/loop", bundle, options)
    _tell("plain loop", loop)
    _tell("one worker", one)
    _tell("two workers", two)
    rate, cpu = "cases per hour", "CPU seconds per case"
    rates, times = two[rate] / one[rate], two[cpu] / one[cpu]
    print(f"two workers against one: {rates:.2f} of the rate, {times:.2f} of the CPU time per case")
    more, cpu_more = loop[rate] / one[rate] - 1, one[cpu] / loop[cpu] - 1
    print(f"one worker against the loop: {more:+.1%} time, {cpu_more:+.1%} CPU time per case")


if __name__ == "__main__":
    main()
