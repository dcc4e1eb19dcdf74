"""How a cohort scales: synthetic CTs by a plain loop, by one worker and by two, with the aims beside the figures.

    python Testing/cohort_times.py --cases 40 --spacing 3,3,4 --pin --work DIR

On idle cores; with the shipped model some 20 minutes, and a few more the first time, for the synthetic CTs in DIR. The
loop calls ``dca segment``'s own function for one CT after the other; it and each worker have one thread, the same
runtime and, with --pin, one core (else a worker that reads or writes one case while another is in the network takes
part of a second). Each segments one case more before the clock starts: what loading and first calls cost is told apart.
CPU seconds are those of all processes, the program with Dask's scheduler and the ledger among them; they say more than
the rate where other work shares the machine. Printed is a table for the documentation; all figures are in
DIR/figures.csv, the aims in DIR/aims.csv. Not a test.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time

import psutil
import torch
from distributed import Client

from dcaseg.cohort.case import CASES, LEDGER, OK, Settings
from dcaseg.cohort.case_worker import peak_mb, process
from dcaseg.cohort.dask_workers import LocalWorkers, local_client
from dcaseg.cohort.discovery import find
from dcaseg.cohort.ledger import Ledger, State
from dcaseg.cohort.run import Cohort, run_cohort
from dcaseg.dicom.archive import Rules
from dcaseg.imaging.writers import write_image
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.pipeline import Job, segment_to_folder
from dcaseg.inference.process_settings import keep_freed_memory
from dcaseg.inference.segmenter import Segmenter
from dcaseg.models.bundle import Bundle
from dcaseg.models.store import default_bundle
from dcaseg.synthesis.phantom.case import generate

MEMORY = int(4e9)
FIRST_SEED = 900_000

# What peak memory may grow by from the 5th case to the last: later cases may be larger.
FLAT = 1.1
RATE, CPU = "cases an hour", "CPU seconds of a case, all processes"
LOADS = "loads of the model in a worker"
OVERLAP = "seconds of work on cases in a second"
WORKER_5, WORKER_END = "peak memory of a worker after its 5th case (MB)", "peak memory of a worker at its last (MB)"
PROGRAM_5, PROGRAM_END = (
    "peak memory of the program after the 5th case (MB)",
    "peak memory of the program at the end (MB)",
)


@dataclass(frozen=True)
class Setup:
    """What is the same for loop and workers."""

    cts: Path
    warm: Path
    out: Path
    bundle: Bundle
    options: SegmentOptions
    runtime: str
    pin: bool


def make_input(folder: Path, first: int, cases: int, spacing: tuple[float, float, float]) -> None:
    """Phantoms of seeds no training uses, each in a folder of its own; those that are there are kept."""
    for number in range(first, first + cases):
        target = folder / f"{number:03d}" / "ct.nii.gz"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(generate(FIRST_SEED + number, spacing, "LPS").ct, target)


def plain_loop(setup: Setup) -> dict[str, float]:
    """Figures of one process that does one case after the other."""
    keep_freed_memory()
    torch.set_num_threads(1)
    segmenter = Segmenter(setup.bundle, "cpu", runtime=setup.runtime)

    def segment(file: Path) -> None:
        out = setup.out / "loop" / file.parent.name
        segment_to_folder(Job(file, out, setup.bundle, setup.options, "cpu"), segmenter=segmenter)

    segment(next(setup.warm.rglob("ct.nii.gz")))
    files = sorted(setup.cts.rglob("ct.nii.gz"))
    start, cpu = perf_counter(), process_time()
    for file in files:
        segment(file)
    return {RATE: 3600 * len(files) / (perf_counter() - start), CPU: (process_time() - cpu) / len(files)}


def cohort(setup: Setup, workers: int) -> dict[str, float]:
    """Figures of a cohort with so many workers."""
    out, bundle = setup.out / f"{workers}", setup.bundle
    out.mkdir()
    settings = Settings(
        *(str(out), str(bundle.folder), bundle.weights.sha256, setup.options, "cpu"), threads=1, runtime=setup.runtime
    )
    whole = Cohort(setup.cts, settings, Rules(), bundle.metadata.vocabulary, bundle.metadata.name)
    used: dict[str, float] = {}
    own_peaks: list[float] = []

    @contextmanager
    def warm_client() -> Iterator[Client]:
        """Every worker has loaded the model and segmented a case; what was used from then on is noted."""
        with local_client(LocalWorkers(workers, 1, MEMORY), 0) as client:
            addresses = list(client.scheduler_info(n_workers=-1)["workers"])
            if setup.pin:
                for core, address in enumerate(addresses):
                    client.run(_keep_to_core, core, workers=[address])
            (case,) = find(setup.warm, out, Rules()).cases
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
        own_peaks.extend([peak_mb()] * (state.counts.get(OK, 0) - len(own_peaks)))

    run_cohort(whole, warm_client, lambda *_: None, tick)
    ledger = Ledger(out / LEDGER)
    done = [entry.outcome for entry in ledger.entries() if entry.outcome and entry.outcome.status == OK]
    ledger.close()
    if len(done) != len(list(setup.cts.rglob("ct.nii.gz"))):
        raise SystemExit(f"{len(done)} cases only came to a good end: see {out}.")
    # A worker's peak never falls, so its n-th case has its n-th smallest.
    peaks: dict[str, list[float]] = {}
    for each in sorted(done, key=lambda each: each.peak_mb):
        peaks.setdefault(each.worker, []).append(each.peak_mb)
    # Of the worker that grew most.
    fifth, last = max(
        ((each[min(4, len(each) - 1)], each[-1]) for each in peaks.values()), key=lambda pair: pair[1] / pair[0]
    )
    return {
        RATE: 3600 * len(done) / used["seconds"],
        CPU: (used["workers"] + used["program"]) / len(done),
        "of these the program's": used["program"] / len(done),
        "seconds of a case outside the network, median": statistics.median(
            each.seconds["total"] - each.seconds["network"] for each in done
        ),
        OVERLAP: sum(each.seconds["total"] for each in done) / used["seconds"],
        LOADS: max(each.loads for each in done),
        WORKER_5: fifth,
        WORKER_END: last,
        PROGRAM_5: own_peaks[min(4, len(own_peaks) - 1)],
        PROGRAM_END: own_peaks[-1],
    }


def aims(loop: dict[str, float], one: dict[str, float], two: dict[str, float]) -> list[tuple[str, float, str, bool]]:
    """What was aimed at: its name, what was measured, the aim, and whether it was met."""
    rate = two[RATE] / one[RATE]
    over, cpu_over = (loop[RATE] / one[RATE] - 1) * 100, (one[CPU] / loop[CPU] - 1) * 100
    loads = max(one[LOADS], two[LOADS])
    workers = max(each[WORKER_END] / each[WORKER_5] for each in (one, two))
    program = max(each[PROGRAM_END] / each[PROGRAM_5] for each in (one, two))
    flat = f"at most {FLAT}"
    return [
        ("rate of two workers, times that of one", rate, "at least 1.7", rate >= 1.7),
        ("one worker: time of a case over the plain loop's (%)", over, "below 15", over < 15),
        ("one worker: CPU time of a case over the plain loop's (%)", cpu_over, "below 15", cpu_over < 15),
        ("loads of the model in a worker", loads, "1", loads == 1),
        ("peak memory of a worker, last case to 5th", workers, flat, workers <= FLAT),
        ("peak memory of the program, last case to 5th", program, flat, program <= FLAT),
    ]


def _cpu_seconds() -> float:
    return sum(os.times()[:2])


def _keep_to_core(core: int) -> None:
    for thread in psutil.Process().threads():
        os.sched_setaffinity(thread.id, {core})


def _tell(columns: dict[str, dict[str, float]], reached: list[tuple[str, float, str, bool]], work: Path) -> None:
    """Prints both tables as Markdown and writes them as CSV."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    rows = [[name, *(figures.get(name) for figures in columns.values())] for name in names]
    judged = [[name, value, aim, "met" if met else "missed"] for name, value, aim, met in reached]
    for file, header, lines in (
        ("figures.csv", ["", *columns], rows),
        ("aims.csv", ["", "measured", "aim", ""], judged),
    ):
        with (work / file).open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([header, *lines])
        print()
        for line in (header, ["---"] * len(header), *lines):
            print("|", " | ".join(map(_shown, line)), "|", flush=True)


def _shown(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.2f}"
    return "" if cell is None else str(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--spacing", default="3,3,4")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--review", action="store_true", help="look for places to check, as dca cohort does")
    parser.add_argument("--bundle", help="folder of the model, else the default one")
    parser.add_argument("--backend", default="eager", help="what runs the network, in the loop too: as in dca segment")
    parser.add_argument("--pin", action="store_true", help="bind the loop and each worker to one core (Linux)")
    parser.add_argument("--work", type=Path, required=True, help="folder for input (kept) and output (made anew)")
    arguments = parser.parse_args()
    work: Path = arguments.work
    x, y, z = map(float, arguments.spacing.split(","))
    cts = work / f"in-{arguments.cases}-{arguments.spacing}"
    warm = work / f"warm-{arguments.cases}-{arguments.spacing}"
    make_input(cts, 0, arguments.cases, (x, y, z))
    make_input(warm, arguments.cases, 1, (x, y, z))
    bundle = Bundle.load(Path(arguments.bundle) if arguments.bundle else default_bundle())
    options = SegmentOptions(overlap=arguments.overlap, review=arguments.review)
    shutil.rmtree(work / "out", ignore_errors=True)
    (work / "out/loop").mkdir(parents=True)
    setup = Setup(cts, warm, work / "out", bundle, options, arguments.runtime, arguments.pin)
    print(
        f"{arguments.cases} synthetic CTs, {arguments.spacing} mm; {bundle.metadata.name}, overlap {options.overlap},",
        f"runtime {arguments.runtime}; load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    # The workers first: as their parent, this process is then as small as the program itself.
    one, two = cohort(setup, 1), cohort(setup, 2)
    if setup.pin:
        _keep_to_core(0)
    loop = plain_loop(setup)
    _tell({"plain loop": loop, "one worker": one, "two workers": two}, aims(loop, one, two), work)


if __name__ == "__main__":
    main()
