"""Use a large GPU for ten minutes in one call: test CUDA, time a step, then train in the remaining time.

    python Testing/gpu/train_on_gpu.py --run FOLDER --minutes 9 --out $OUT

FOLDER contains what the call needs, at most 60 MB, since the machine with the GPU may have no internet access.
``--prepare RUN`` fills it with the state of a run of ``dca train``, its prepared cases, and the label maps and
registrations that its synthetic CTs are made from. The call leaves at most eight files in ``--out``: ``report.json``,
``tests.txt``, the run's log, and ``state.npz`` (at most 16 MiB), from which the next call continues. The state is
written every two minutes, so a call that is cut off loses no more than that.

Without a GPU it does the same on the CPU, except the tests of CUDA; ``--minutes 2`` tries it.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "DCASegmentation"))

STATE, CASES, REPORT, LOG, TESTS = "state.npz", "cases.npz", "report.json", "log.jsonl", "tests.txt"
MAPS, WARPS = "maps", "warps"
# All that a call may take with it.
MAX_BYTES = 60_000_000
SAVE_SECONDS = 120
# Time reserved for the last state and report: compressing takes ten seconds on a slow disk.
RESERVE_SECONDS = 25


def main() -> int:
    """Run what the command line asks for. The exit code is 0 if training ended as planned."""
    arguments = _arguments()
    if arguments.prepare is not None:
        return prepare(arguments.prepare, arguments.run, arguments.cache)
    started = time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"machine": _machine()}
    _write(report, arguments.out)
    if not arguments.no_tests:
        report["tests"] = _tests(arguments.out, seconds=60 * arguments.minutes * 0.25)
        _write(report, arguments.out)
    report["step"] = step_times(_trainer(arguments))
    _write(report, arguments.out)
    deadline = started + 60 * arguments.minutes - RESERVE_SECONDS
    report["training"] = train(_trainer(arguments), _record(arguments.run), arguments.out, deadline)
    _write(report, arguments.out)
    return 0


def prepare(run: Path, folder: Path, cache: Path | None) -> int:
    """Put the state of ``run``, its cases on the model's grid and its label maps into ``folder``.

    Returns 1 if it is larger than ``MAX_BYTES``, else 0.
    """
    import numpy as np

    from dcaseg.training.checkpoints import load_checkpoint, read_record
    from dcaseg.training.compact_state import write_compact
    from dcaseg.training.run_folder import CHECKPOINT

    record = read_record(run)
    window = record.options.grid.hu_window
    folder.mkdir(parents=True, exist_ok=True)
    write_compact(folder / STATE, load_checkpoint(run / CHECKPOINT), record.to_json())
    if record.cohort.stream is not None:
        _copy_label_maps(record.cohort.stream, folder)
    groups = record.cohort.cases(cache or run / "cases", record.options.grid)
    left = MAX_BYTES - _bytes_of(folder, (STATE, MAPS, WARPS))
    arrays: dict[str, Any] = {}
    # Validation first, because the best weights depend on it; what does not fit is left out.
    for group, cases in (("validation", groups[2]), ("labelled", groups[0]), ("unlabelled", groups[1])):
        for index, case in enumerate(cases):
            # The network sees nothing beyond the window, and differences along a row compress to two thirds.
            hu = np.clip(case.hu, *map(math.floor, window)).astype(np.int16)
            hu = np.diff(hu, axis=2, prepend=np.int16(0)).astype(np.int16)
            left -= sum(len(zlib.compress(each.tobytes())) + 500 for each in (hu, case.labels) if each is not None)
            if left < 0:
                print(f"Left out, because of the limit of {MAX_BYTES / 1e6:.0f} MB: {group} cases from {index + 1} on")
                break
            place = f"{group}/{index}/"
            arrays[place + "hu"] = hu
            arrays[place + "about"] = np.array(json.dumps([case.name, list(case.unannotated), case.spacing]))
            if case.labels is not None:
                arrays[place + "labels"] = case.labels
    np.savez_compressed(folder / CASES, **arrays)
    for name in (STATE, CASES, MAPS, WARPS):
        print(f"{folder / name}: {_bytes_of(folder, (name,)) / 1e6:.1f} MB")
    return int(_bytes_of(folder, (STATE, CASES, MAPS, WARPS)) > MAX_BYTES)


def _bytes_of(folder: Path, names: tuple[str, ...]) -> int:
    paths = [path for name in names for path in [folder / name, *(folder / name).rglob("*")]]
    return sum(path.stat().st_size for path in paths if path.is_file())


def _copy_label_maps(stream: Any, folder: Path) -> None:
    names = {Path(each.folder).name for each in stream.maps}
    for each in stream.maps:
        copy = folder / MAPS / Path(each.folder).name
        copy.mkdir(parents=True, exist_ok=True)
        # Without their modes: the originals may be read-only.
        for path in Path(each.folder).iterdir():
            if path.is_file():
                shutil.copyfile(path, copy / path.name)
    if stream.warps is None:
        return
    (folder / WARPS).mkdir(exist_ok=True)
    for path in Path(stream.warps).glob("*--*.npz"):
        if set(path.stem.split("--", 1)) <= names:
            shutil.copyfile(path, folder / WARPS / path.name)


def _sampler(arguments: argparse.Namespace, record: Any, options: Any, cases: list[Any], device: str) -> dict[str, Any]:
    """The arguments of the trainer for a run on synthetic CTs, made from the copied label maps; empty for others."""
    from concurrent.futures import ProcessPoolExecutor

    from dcaseg.synthesis.label_to_ct.anatomy import load_anatomy

    stream = record.cohort.stream
    if stream is None:
        return {}
    maps = tuple(replace(each, folder=str(arguments.run / MAPS / Path(each.folder).name)) for each in stream.maps)
    cache = arguments.out / "cache"
    warps = str(arguments.run / WARPS) if (arguments.run / WARPS).is_dir() else None
    copied = replace(stream, maps=maps, warps=warps)
    # Each takes some 20 s.
    with ProcessPoolExecutor(min(len(maps), os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        folders = [Path(each.folder) for each in maps]
        list(pool.map(load_anatomy, folders, [None] * len(folders), [cache / "anatomies"] * len(folders)))
    recipes = copied.make_sampler(cache, options, device)
    return {"sampler": copied.mix_samplers(recipes, cases, options), "anatomies": recipes.anatomies}


def _cases(folder: Path) -> dict[str, list[Any]]:
    import numpy as np

    from dcaseg.training.cases import Case

    groups: dict[str, list[Any]] = {"labelled": [], "unlabelled": [], "validation": []}
    with np.load(folder / CASES, allow_pickle=False) as file:
        places = sorted({name.rpartition("/")[0] for name in file.files}, key=lambda p: (p[0], int(p.split("/")[1])))
        for place in places:
            name, unannotated, spacing = json.loads(str(file[f"{place}/about"]))
            hu = np.cumsum(file[f"{place}/hu"], axis=2, dtype=np.int16)
            labels = file[f"{place}/labels"] if f"{place}/labels" in file.files else None
            case = Case(name, hu, labels, tuple(unannotated), None if spacing is None else tuple(spacing))
            groups[place.split("/")[0]].append(case)
    return groups


def _record(folder: Path) -> Any:
    from dcaseg.training.checkpoints import RunRecord
    from dcaseg.training.compact_state import read_compact

    return RunRecord.from_json(read_compact(folder / STATE)[1] or {})


def _trainer(arguments: argparse.Namespace) -> Any:
    import torch

    from dcaseg.training.trainer import Trainer

    torch.backends.cudnn.benchmark = True
    record = _record(arguments.run)
    options = replace(record.options, steps=arguments.steps or record.options.steps)
    groups = _cases(arguments.run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(
        arguments.out / "run",
        options,
        record.vocabulary,
        groups["labelled"],
        groups["unlabelled"],
        groups["validation"],
        device=device,
        groups=record.partition,
        **_sampler(arguments, record, options, groups["labelled"], device),
    )
    trainer.resume(arguments.run / STATE)
    return trainer


def step_times(trainer: Any, steps: int = 10) -> dict[str, Any]:
    """Seconds of a step at the run's present stage, of drawing its patches, and the share of time in kernels.

    ``trainer`` takes some steps, which is why training itself has another one.
    """
    import torch

    cuda = trainer.device.type == "cuda"
    count = min(steps if cuda else 2, (trainer.options.steps - trainer.step - 1) // 2)
    if count < 1:
        return {"note": "the run has no steps left"}

    def wait() -> None:
        if cuda:
            torch.cuda.synchronize()

    # The first steps choose kernels and get memory.
    for _ in range(3 if cuda else 1):
        trainer._advance()
    wait()
    step_state = trainer.strategy.get_step_state(trainer.step)
    started = time.perf_counter()
    for _ in range(count):
        trainer._draw(step_state)
    wait()
    drawing = (time.perf_counter() - started) / count
    started = time.perf_counter()
    for _ in range(count):
        trainer._advance()
    wait()
    found: dict[str, Any] = {
        "stage": step_state.stage,
        "seconds_with_drawing": round((time.perf_counter() - started) / count, 4),
        "drawing_seconds": round(drawing, 4),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
    }
    return found | (_kernels(trainer, wait) if cuda else {})


def _kernels(trainer: Any, wait: Any) -> dict[str, Any]:
    """Share of the time in which the GPU computes, and the kernels that take most of it."""
    from torch.profiler import ProfilerActivity, profile

    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as recorded:
        for _ in range(2):
            trainer._advance()
        wait()
    seconds = time.perf_counter() - started
    rows = [(row.key, row.self_device_time_total / 1e6, row.count) for row in recorded.key_averages()]
    kernels = sorted((row for row in rows if row[1] > 0), key=lambda row: -row[1])
    total = sum(row[1] for row in kernels)
    return {
        "kernel_seconds": round(total / 2, 4),
        "kernel_share_while_profiled": round(total / seconds, 3),
        "top_kernels": [[name[:60], round(share / total, 3), count] for name, share, count in kernels[:12]],
    }


def train(trainer: Any, record: Any, out: Path, deadline: float) -> dict[str, Any]:
    """Train until ``deadline`` (of the monotonic clock), leaving a state every two minutes and at the end."""
    first, started = trainer.step, time.monotonic()
    state_saved = started
    described = replace(record, options=trainer.options).to_json()

    def export() -> None:
        detail = trainer.export(out / STATE, described)
        print(f"step {trainer.step}: {STATE}, {detail}", flush=True)
        if (trainer.folder / LOG).exists():
            shutil.copy(trainer.folder / LOG, out / LOG)

    def report(line: dict[str, Any]) -> None:
        nonlocal state_saved
        if "dice" in line:
            print(f"step {line['step']}: Dice {line['dice']['mean']}", flush=True)
        if time.monotonic() - state_saved > SAVE_SECONDS:
            state_saved = time.monotonic()
            export()

    # Synthetic CTs are made on the GPU, which worker processes cannot share.
    is_rendering = record.cohort.stream is not None
    workers = min(6, (os.cpu_count() or 2) - 2) if trainer.device.type == "cuda" and not is_rendering else 0
    try:
        minutes = max(deadline - time.monotonic(), 1) / 60
        trainer.run(minutes, 10**9, record.validate_every, report, lambda text: print(text, flush=True), True, workers)
    finally:
        export()
        # The whole checkpoint is too large to come back; the next call continues from the state.
        shutil.rmtree(trainer.folder, ignore_errors=True)
        shutil.rmtree(out / "cache", ignore_errors=True)
    seconds = time.monotonic() - started
    steps = trainer.step - first
    return {
        "from_step": first,
        "to_step": trainer.step,
        "of_steps": trainer.options.steps,
        "seconds": round(seconds, 1),
        "samples_a_second": round(
            steps * (trainer.options.labeled_per_step + trainer.options.unlabeled_per_step) / max(seconds, 1), 2
        ),
        "best_dice": trainer.best,
    }


def _tests(out: Path, seconds: float) -> dict[str, Any]:
    """The outcome of the tests of CUDA, which end after ``seconds`` whatever they have reached."""
    import torch

    if not torch.cuda.is_available():
        return {"note": "no CUDA here: the tests of CUDA were not run"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "Testing" / "test_cuda.py")]
    paths = os.pathsep.join([str(ROOT / "DCASegmentation"), os.environ.get("PYTHONPATH", "")])
    with (out / TESTS).open("w") as file:
        try:
            environment = {**os.environ, "PYTHONPATH": paths}
            code = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, cwd=ROOT, env=environment, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = -1
    lines = (out / TESTS).read_text().strip().splitlines()
    return {"exit_code": code, "last_line": lines[-1] if lines else ""}


def _machine() -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "device": torch.cuda.get_device_properties(0).name if cuda else "cpu",
        "cores": os.cpu_count(),
    }


def _write(report: dict[str, Any], out: Path) -> None:
    text = json.dumps(report, indent=2)
    part = out / f".{REPORT}"
    part.write_text(text)
    part.replace(out / REPORT)
    print(text, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder with the state and the cases")
    parser.add_argument("--prepare", type=Path, metavar="RUN", help="make the folder from this run of dca train")
    parser.add_argument("--cache", type=Path, help="with --prepare: the folder of prepared cases of that run")
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole call")
    parser.add_argument("--steps", type=int, help="another length of the run in steps")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu-out")))
    parser.add_argument("--no-tests", action="store_true", help="leave out Testing/test_cuda.py")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
