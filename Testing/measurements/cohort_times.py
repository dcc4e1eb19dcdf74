"""Measures how a cohort scales: synthetic CTs in a plain loop, with one worker and with two, compared with the aims.

    python Testing/measurements/cohort_times.py --cases 40 --spacing 3,3,4 --pin --work DIR

Needs idle cores. Takes about 20 minutes with the shipped model, and a few more the first time to generate the synthetic
CTs in DIR. The loop calls the function behind ``dca segment`` for each CT. The loop and each worker have one thread,
the same backend and, with --pin, one core (without it, a worker that reads or writes one case while it segments another
uses part of a second core). Each segments an extra case before the clock starts, to exclude the cost of loading and of
first calls. CPU seconds are those of all processes, including the program with Dask's scheduler and the ledger; on a
shared machine they are more reliable than the rate. Prints a table for the documentation and writes DIR/figures.csv and
DIR/aims.csv. Not a test.
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
from dcaseg.cohort.case_worker import get_peak_mb, process
from dcaseg.cohort.dask_workers import LocalWorkers, local_client
from dcaseg.cohort.discovery import find
from dcaseg.cohort.ledger import Ledger, RunProgress
from dcaseg.cohort.run import Cohort, run_cohort
from dcaseg.dicom.archive import Rules
from dcaseg.imaging.writers import write_image
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.pipeline import Job, segment_to_folder
from dcaseg.inference.process_settings import keep_freed_memory
from dcaseg.inference.segmenter import Segmenter
from dcaseg.models.bundle import Bundle
from dcaseg.models.store import find_default_bundle
from dcaseg.synthesis.phantom.case import generate

MEMORY = int(4e9)
FIRST_SEED = 900_000

# Allowed growth of peak memory from the 5th case to the last. Not 1, since later cases may be larger.
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
    """Settings shared by the loop and the workers."""

    cts: Path
    warm: Path
    out: Path
    bundle: Bundle
    options: SegmentOptions
    backend: str
    pin: bool


def make_input(folder: Path, first: int, cases: int, spacing: tuple[float, float, float]) -> None:
    """Write phantoms of seeds that no training uses, each in its own folder; existing ones are kept."""
    for number in range(first, first + cases):
        target = folder / f"{number:03d}" / "ct.nii.gz"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_image(generate(FIRST_SEED + number, spacing, "LPS").ct, target)


def plain_loop(setup: Setup) -> dict[str, float]:
    """Figures of one process that segments the cases one by one."""
    keep_freed_memory()
    torch.set_num_threads(1)
    segmenter = Segmenter(setup.bundle, "cpu", backend=setup.backend)

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
    """Figures of a cohort with this number of workers."""
    out, bundle = setup.out / f"{workers}", setup.bundle
    out.mkdir()
    settings = Settings(
        *(str(out), str(bundle.folder), bundle.weights.sha256, setup.options, "cpu"), threads=1, backend=setup.backend
    )
    whole = Cohort(setup.cts, settings, Rules(), bundle.metadata.vocabulary, bundle.metadata.name)
    used: dict[str, float] = {}
    own_peaks: list[float] = []

    @contextmanager
    def warm_client() -> Iterator[Client]:
        """Yield a client after every worker has segmented a case, and measure time and CPU use from then on."""
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

    def tick(state: RunProgress) -> None:
        own_peaks.extend([get_peak_mb()] * (state.counts.get(OK, 0) - len(own_peaks)))

    run_cohort(whole, warm_client, lambda *_: None, tick)
    ledger = Ledger(out / LEDGER)
    done = [entry.outcome for entry in ledger.iter_entries() if entry.outcome and entry.outcome.status == OK]
    ledger.close()
    if len(done) != len(list(setup.cts.rglob("ct.nii.gz"))):
        raise SystemExit(f"Only {len(done)} cases succeeded: see {out}.")
    # A worker's peak never falls, so sorting by peak restores the order of its cases.
    peaks: dict[str, list[float]] = {}
    for outcome in sorted(done, key=lambda outcome: outcome.peak_mb):
        peaks.setdefault(outcome.worker, []).append(outcome.peak_mb)
    # The worker that grew most.
    fifth, last = max(
        ((values[min(4, len(values) - 1)], values[-1]) for values in peaks.values()),
        key=lambda pair: pair[1] / pair[0],
    )
    return {
        RATE: 3600 * len(done) / used["seconds"],
        CPU: (used["workers"] + used["program"]) / len(done),
        "of these the program's": used["program"] / len(done),
        "seconds of a case outside the network, median": statistics.median(
            outcome.seconds["total"] - outcome.seconds["network"] for outcome in done
        ),
        OVERLAP: sum(outcome.seconds["total"] for outcome in done) / used["seconds"],
        LOADS: max(outcome.loads for outcome in done),
        WORKER_5: fifth,
        WORKER_END: last,
        PROGRAM_5: own_peaks[min(4, len(own_peaks) - 1)],
        PROGRAM_END: own_peaks[-1],
    }


def aims(loop: dict[str, float], one: dict[str, float], two: dict[str, float]) -> list[tuple[str, float, str, bool]]:
    """Each aim: its name, the measured value, the target, and whether it was met."""
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


def _write_tables(
    columns: dict[str, dict[str, float]], reached: list[tuple[str, float, str, bool]], work: Path
) -> None:
    """Print both tables as Markdown and write them as CSV."""
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
            print("|", " | ".join(map(_format, line)), "|", flush=True)


def _format(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 100 else f"{cell:.2f}"
    return "" if cell is None else str(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40)
    parser.add_argument("--spacing", default="3,3,4")
    parser.add_argument("--overlap", type=float, default=0.5)
    parser.add_argument("--review", action="store_true", help="compute review findings, like dca cohort")
    parser.add_argument("--bundle", help="folder of the model (default: the default model)")
    parser.add_argument("--backend", default="eager", help="backend of the network, also in the loop: see dca segment")
    parser.add_argument("--pin", action="store_true", help="bind the loop and each worker to one core (Linux)")
    parser.add_argument("--work", type=Path, required=True, help="folder for input (kept) and output (replaced)")
    arguments = parser.parse_args()
    work: Path = arguments.work
    x, y, z = map(float, arguments.spacing.split(","))
    cts = work / f"in-{arguments.cases}-{arguments.spacing}"
    warm = work / f"warm-{arguments.cases}-{arguments.spacing}"
    make_input(cts, 0, arguments.cases, (x, y, z))
    make_input(warm, arguments.cases, 1, (x, y, z))
    bundle = Bundle.load(Path(arguments.bundle) if arguments.bundle else find_default_bundle())
    options = SegmentOptions(overlap=arguments.overlap, review=arguments.review)
    shutil.rmtree(work / "out", ignore_errors=True)
    (work / "out/loop").mkdir(parents=True)
    setup = Setup(cts, warm, work / "out", bundle, options, arguments.backend, arguments.pin)
    print(
        f"{arguments.cases} synthetic CTs, {arguments.spacing} mm; {bundle.metadata.name}, overlap {options.overlap},",
        f"backend {arguments.backend}; load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        flush=True,
    )
    # The workers first, while their parent, this process, is as small as the real program.
    one, two = cohort(setup, 1), cohort(setup, 2)
    if setup.pin:
        _keep_to_core(0)
    loop = plain_loop(setup)
    _write_tables({"plain loop": loop, "one worker": one, "two workers": two}, aims(loop, one, two), work)


if __name__ == "__main__":
    main()
