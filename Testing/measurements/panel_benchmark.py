"""Measure the time from a CT in the scene to its segments, outside the network, with a warm worker.

    python Testing/measurements/panel_benchmark.py [--ct CT] [--slices 150] [--bundle NAME] [--threads 2] [-o FILE.json]

This does what Apply does in the module, without its widgets: export the CT node, run the worker, import the results
into the scene. Without slicer-core there is no scene: the CT is a file, and the results stay files.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from dcaseg.errors import UserError
from dcaseg.imaging.readers import read_ct
from dcaseg.organs import Vocabulary
from dcaseg.worker.protocol import (
    Done,
    Event,
    Failure,
    Hello,
    Log,
    Progress,
    Segment,
    WasCancelled,
    decode_event,
    encode,
)

NETWORK = "network"
"""The worker's name of the phase in which the network runs."""
LIMIT_S = 5.0
ALL_MAPS: Mapping[str, Any] = {
    "attention_levels": [1, 2, 3, 4],
    "dominant_expert": True,
    "entropy": True,
    "disagreement": True,
}
"""What the module asks for."""


@dataclass(frozen=True)
class PanelTimes:
    """Seconds of each step: export of the CT, the worker's phases, what passed between them, import of the results."""

    seconds: dict[str, float]
    with_scene: bool

    @property
    def network(self) -> float:
        """Seconds of the network."""
        return self.seconds[NETWORK]

    @property
    def outside(self) -> float:
        """Seconds of everything else."""
        return sum(self.seconds.values()) - self.network


def has_scene() -> bool:
    """Whether slicer-core is installed."""
    return find_spec("slicer") is not None


def measure_panel(
    ct: Path, bundle: Path, vocabulary: Vocabulary, environment: Mapping[str, str], on_run: Callable[[str], None]
) -> PanelTimes:
    """Segment ``ct`` twice with one worker; the times are those of the second run, when the model is loaded.

    ``on_run`` is called with a description of each run that begins. Raises UserError if the worker refuses the CT.
    """
    image = read_ct(ct)
    with _Worker(environment) as worker, tempfile.TemporaryDirectory() as folder:
        scene = _scene(image) if has_scene() else None
        for name in ("first run", "warm run"):
            on_run(name)
            job = Path(folder, name.split()[0])
            job.mkdir()
            times = _run(worker, job, image, scene, bundle, vocabulary)
    return times


def _run(
    worker: _Worker, job: Path, image: sitk.Image, scene: Any | None, bundle: Path, vocabulary: Vocabulary
) -> PanelTimes:
    started = time.perf_counter()
    path = _export(job, image, scene)
    exported = time.perf_counter()
    done = worker.segment(Segment("1", str(path), str(job / "result"), str(bundle), "cpu", dict(ALL_MAPS)))
    answered = time.perf_counter()
    seconds = {"export": exported - started, **done.seconds}
    seconds["between"] = answered - exported - sum(done.seconds.values())
    if scene is not None:
        from DCASegmentationLib.scene.result_import import import_result

        import_result(Path(done.folder), scene, vocabulary)
        seconds["import"] = time.perf_counter() - answered
    return PanelTimes(seconds, scene is not None)


def _export(job: Path, image: sitk.Image, scene: Any | None) -> Path:
    if scene is None:
        sitk.WriteImage(image, str(job / "ct.nrrd"), False)
        return job / "ct.nrrd"

    from DCASegmentationLib.scene.ct_export import export_ct

    path, _ = export_ct(scene, job)
    return path


def _scene(image: sitk.Image) -> Any:
    from DCASegmentationLib.scene.headless import boot
    from DCASegmentationLib.scene.volumes import show_ct

    boot()
    return show_ct(image, "CT")


class _Worker:
    """The worker's process and the answers it gives."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dcaseg.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(environment),
        )

    def __enter__(self) -> _Worker:
        assert isinstance(self._next(), Hello)
        return self

    def __exit__(self, *error: object) -> None:
        # It ends, with all it has started, when nobody speaks to it any more.
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def segment(self, request: Segment) -> Done:
        """The answer to a request. Raises UserError for an error."""
        assert self._process.stdin
        self._process.stdin.write(encode(request))
        self._process.stdin.flush()
        while isinstance(event := self._next(), Progress | Log):
            pass
        if isinstance(event, Failure | WasCancelled):
            raise UserError(*(event.problem, event.remedy) if isinstance(event, Failure) else ("It was cancelled.",))
        assert isinstance(event, Done)
        return event

    def _next(self) -> Event:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise UserError("The segmentation process ended unexpectedly.", "Run dca segment on the CT to see why.")
        return decode_event(line)


def main() -> None:
    from dcaseg.benchmark.inputs import create_benchmark_ct
    from dcaseg.benchmark.process_cost import make_thread_environment
    from dcaseg.imaging.writers import write_json
    from dcaseg.models.bundle import Bundle
    from dcaseg.models.store import find_bundle, find_default_bundle
    from dcaseg.user_folders import get_home_or_temporary

    parser = argparse.ArgumentParser(description="Time a CT's way from the scene through a warm worker and back.")
    parser.add_argument("--ct", type=Path, help="A CT to measure on. Else a synthetic one of --slices slices.")
    parser.add_argument("--slices", type=int, default=150)
    parser.add_argument("--bundle", help="Folder or name of the model. Else the default one.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("-o", "--out", type=Path, help="JSON file for the seconds; must not exist.")
    options = parser.parse_args()
    if options.out is not None and options.out.exists():
        parser.error(f"{options.out} already exists")
    model = Bundle.load(find_bundle(options.bundle) if options.bundle else find_default_bundle())
    folder = get_home_or_temporary() / ".dca" / "benchmark"
    path = options.ct or create_benchmark_ct(folder, options.slices, lambda share, text: None)
    times = measure_panel(
        path, model.folder, model.metadata.vocabulary, make_thread_environment(options.threads), print
    )
    if not has_scene():
        print("slicer-core is not installed: export from the scene and import into it are not measured.")
    for step, seconds in times.seconds.items():
        print(f"{step:>12} {seconds:6.2f} s")
    verdict = "met" if times.outside <= LIMIT_S else "missed"
    print(f"Everything but the {NETWORK}: {times.outside:.2f} s (target: at most {LIMIT_S:g} s; {verdict})")
    if options.out is not None:
        write_json({"ct": str(path), "model": model.metadata.name, **vars(times)}, options.out)


if __name__ == "__main__":
    main()
