"""Runs pipelines alternately, and stores the runs in a file."""

from __future__ import annotations

import csv
import io
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import UserError, get_reason
from ..imaging.label_comparison import compute_dice_by_label
from ..imaging.readers import read_ct, read_labels
from ..imaging.writers import write_image, write_text
from .pipelines import Pipeline, Setting, list_pipelines
from .process_cost import Cost, ProcessFailedError, make_thread_environment, measure_process
from .rates import measure_sgemm_rate
from .window_replay import WindowCosts

Report = Callable[[float, str], None]


@dataclass(frozen=True)
class Run:
    """A run of the pipeline ``key`` in ``round``, with the time (s) and memory (MiB) of its process tree.

    Of ``windows``, ``computed`` were really computed. If these are fewer, ``cpu_s`` and ``wall_s`` are extrapolated,
    and ``measured_cpu_s`` is the CPU time that the process really took. Both numbers are 0 if windows were not counted,
    since all were computed. ``sgemm`` is the machine's rate just before the run (see ``rates.measure_sgemm_rate``),
    which other programs on the machine reduce.
    """

    key: str
    round: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    measured_cpu_s: float
    windows: int = 0
    computed: int = 0
    sgemm: float = 0.0

    @property
    def is_extrapolated(self) -> bool:
        """Whether part of the time is extrapolated."""
        return self.computed < self.windows


@dataclass
class Runs:
    """All runs of a measurement, and the reasons for pipelines without runs."""

    runs: list[Run]
    left_out: dict[str, str]

    def get_runs(self, key: str) -> list[Run]:
        """The runs of the pipeline ``key``."""
        return [run for run in self.runs if run.key == key]

    def compute_median(self, key: str) -> Cost | None:
        """Medians over the runs of the pipeline ``key``; None without runs."""
        runs = self.get_runs(key)
        if not runs:
            return None
        wall, cpu, peak = ([getattr(run, name) for run in runs] for name in ("wall_s", "cpu_s", "peak_mib"))
        return Cost(statistics.median(wall), statistics.median(cpu), statistics.median(peak))

    def compute_range(self, key: str, figure: str = "cpu_s") -> tuple[float, float] | None:
        """Lowest and highest value of a quantity (a field of ``Cost``) over the runs; None for fewer than two runs."""
        values = [getattr(run, figure) for run in self.get_runs(key)]
        return (min(values), max(values)) if len(values) > 1 else None

    def compute_ratio(self, key: str, to: str, figure: str = "cpu_s") -> float | None:
        """Ratio of a quantity (a field of ``Cost``) of two pipelines; None if one of them has no runs."""
        ours, theirs = self.compute_median(key), self.compute_median(to)
        return None if ours is None or theirs is None else getattr(ours, figure) / getattr(theirs, figure)

    def write(self, path: Path) -> None:
        """Write a CSV file with a line for each run."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [*(column.name for column in fields(Run)), "extrapolated"], lineterminator="\n")
        writer.writeheader()
        for run in self.runs:
            rounded = {name: round(v, 3) if isinstance(v, float) else v for name, v in asdict(run).items()}
            writer.writerow({**rounded, "extrapolated": "yes" if run.is_extrapolated else "no"})
        write_text(text.getvalue(), path)

    @classmethod
    def read(cls, path: Path) -> Runs:
        """Read a file from ``write``. Raises UserError for another file."""
        types = {"key": str, "round": int, "windows": int, "computed": int}
        try:
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            runs = [Run(**{c.name: types.get(c.name, float)(row[c.name]) for c in fields(Run)}) for row in rows]
        except (OSError, KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path} is not a table of runs ({get_reason(error)}).", "Choose another folder.") from None
        return cls(runs, {})


def measure(
    chosen: Sequence[Pipeline],
    rounds: int,
    threads: int,
    done: Runs,
    on_run: Callable[[Run], None],
    peer_rounds: int | None = None,
    progress: Report | None = None,
    keep: Path | None = None,
) -> None:
    """Run each pipeline once per round until it has ``rounds`` runs in ``done``, to which runs are added.

    The pipelines alternate, so that other load on the computer affects all of them equally. ``peer_rounds`` limits the
    rounds of the peers. ``on_run`` receives each finished run. A pipeline that fails or lacks a module is skipped from
    then on, and ``done.left_out`` gets the reason. ``keep`` is a folder for the label maps of pipelines that computed
    all windows.
    """
    order = [
        (number, pipeline)
        for number in range(1, rounds + 1)
        for pipeline in chosen
        if number <= (peer_rounds or rounds) or not pipeline.is_peer
    ]
    for index, (number, pipeline) in enumerate(order):
        if progress:
            progress(index / len(order), f"Round {number} of {rounds}: {pipeline.name}")
        if len(done.get_runs(pipeline.key)) >= number or pipeline.key in done.left_out:
            continue
        if pipeline.missing is not None:
            done.left_out[pipeline.key] = f"{pipeline.missing} is not installed"
            continue
        try:
            run = run_once(pipeline, number, threads, keep)
        except ProcessFailedError as error:
            done.left_out[pipeline.key] = f"failed: {error}"
            continue
        done.runs.append(run)
        on_run(run)


def run_once(pipeline: Pipeline, number: int, threads: int, keep: Path | None = None) -> Run:
    """Run a pipeline once. Raises ProcessFailedError if it fails.

    Its label map is moved to the folder ``keep``, if given and if all windows were computed; else it is discarded.
    """
    sgemm = measure_sgemm_rate()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "windows.json"
        cost = measure_process(pipeline.command(Path(folder), report), make_thread_environment(threads))
        windows = WindowCosts.read(report) if report.exists() else None
        if keep is not None and (windows is None or not windows.replayed):
            _keep_labels(Path(folder) / pipeline.labels, keep / f"{pipeline.key}.nii.gz")
    if windows is None:
        return Run(pipeline.key, number, cost.wall_s, cost.cpu_s, cost.peak_mib, cost.cpu_s, sgemm=sgemm)
    whole = windows.extrapolate(cost)
    counts = (windows.total, windows.total - windows.replayed)
    return Run(pipeline.key, number, whole.wall_s, whole.cpu_s, whole.peak_mib, cost.cpu_s, *counts, sgemm)


def _keep_labels(written: Path, kept: Path) -> None:
    if written.exists() and not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(written, kept)


def compute_agreements(chosen: Iterable[Pipeline], kept: Path) -> dict[str, tuple[float, float]]:
    """How far the labels of pipelines agree with those of their references: mean and lowest Dice of the organs, by key.

    ``kept`` is the folder of ``measure``. Pipelines whose label map or whose reference's is not there are missing.
    """
    found = {}
    for pipeline in chosen:
        files = [kept / f"{key}.nii.gz" for key in (pipeline.key, pipeline.reference)]
        if pipeline.reference and all(file.exists() for file in files):
            ours, theirs = (sitk.GetArrayFromImage(read_labels(file)) for file in files)
            dice = compute_dice_by_label(ours, theirs, int(max(ours.max(), theirs.max())))
            dice = dice[~np.isnan(dice)]
            if len(dice):
                found[pipeline.key] = float(dice.mean()), float(dice.min())
    return found


def select_pipelines(keys: Iterable[str], known: Sequence[Pipeline]) -> list[Pipeline]:
    """The pipelines with these keys. Raises UserError for an unknown key."""
    by_key = {pipeline.key: pipeline for pipeline in known}
    for key in keys:
        if key not in by_key:
            raise UserError(f"Unknown pipeline: '{key}'.", f"Choose from: {', '.join(by_key)}.")
    return [by_key[key] for key in keys]


def warm_up(chosen: Sequence[Pipeline], setting: Setting, threads: int) -> None:
    """Run our pipelines on a part of the CT as large as a window, for the work that is done only once for each model.

    Converting a network, or measuring which backend is fastest, is not part of a segmentation.
    """
    ours = [pipeline for pipeline in chosen if not pipeline.is_peer]
    if not ours:
        return
    with tempfile.TemporaryDirectory() as folder:
        piece = Path(folder) / "piece.nii.gz"
        write_image(crop_center(read_ct(setting.ct), setting.fine_mm * max(setting.patch)), piece)
        for pipeline in list_pipelines(replace(setting, ct=piece, our_windows=None)):
            if pipeline.key in {own.key for own in ours}:
                out = Path(folder) / pipeline.key
                out.mkdir()
                measure_process(pipeline.command(out, out / "windows.json"), make_thread_environment(threads))


def crop_center(ct: sitk.Image, side_mm: float) -> sitk.Image:
    """The middle part of ``ct``, at most ``side_mm`` along each axis."""
    size = [min(n, max(int(side_mm / step), 8)) for n, step in zip(ct.GetSize(), ct.GetSpacing(), strict=True)]
    first = [(n - kept) // 2 for n, kept in zip(ct.GetSize(), size, strict=True)]
    return sitk.RegionOfInterest(ct, size, first)
