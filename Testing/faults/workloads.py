"""Operations of the program that faults are injected into, each with a check of the state it leaves behind."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from matplotlib.figure import Figure
from PIL import Image

from dcaseg.cohort.case import Case, Outcome, Settings
from dcaseg.cohort.ledger import Ledger, RunProgress
from dcaseg.cohort.run import Cohort, _report
from dcaseg.dicom.archive import Rules
from dcaseg.errors import OutputError
from dcaseg.evaluation.figures.style import save_figure
from dcaseg.evaluation.scores import Scores
from dcaseg.imaging.writers import new_folder, temporary_folder, write_image, write_json, write_text
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.pipeline import Job, segment_to_folder
from dcaseg.method.log_gap import partition
from dcaseg.method.network import DCANet
from dcaseg.models.bundle import Bundle, replacing, save_bundle
from dcaseg.models.metadata import Metadata, TrainingData
from dcaseg.models.user_models import add_bundle
from dcaseg.organs import AMOS
from dcaseg.training.cases import Case as PreparedCase
from dcaseg.training.cases import load_case, save_case
from dcaseg.training.checkpoints import load_checkpoint, remove_leftovers, save_checkpoint
from dcaseg.training.compact_state import read_compact, write_compact
from dcaseg.training.corrections import (
    add_corrected_case,
    list_case_folders,
    read_case,
    read_dataset,
    require_unchanged,
)

EARLIER, NEW, ABSENT = "earlier", "new", "absent"
SEEDS = {EARLIER: 1, NEW: 2}


@dataclass(frozen=True)
class Workload:
    """``prepare(root)`` creates the earlier files; faults are injected into ``work(root)``.

    ``state(root)`` returns the state (earlier, new or absent) and raises an error if files are damaged. ``repeats``:
    whether the work may be repeated over its own result; otherwise the program refuses the second time.
    """

    name: str
    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    state: Callable[[Path], str]
    before: str = EARLIER
    repeats: bool = True
    seconds: float = 0.05


def image(value: int, size: int = 24) -> sitk.Image:
    noise = np.random.default_rng(value).integers(-200, 300, (size,) * 3).astype(np.int16)
    found = sitk.GetImageFromArray(noise)
    found.SetSpacing((8.0, 8.0, 8.0))
    return found


def numbers(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def which_image(path: Path) -> str:
    """Which of the two versions an image is; raises ValueError where it is neither."""
    found = numbers(path)
    for name, seed in SEEDS.items():
        if np.array_equal(found, numbers_of(seed)):
            return name
    raise ValueError(f"{path} is neither the earlier nor the new one")


def which_text(path: Path) -> str:
    """Which of the two versions a text is; raises ValueError where it is neither."""
    for name in SEEDS:
        if path.read_text() == name * 1000:
            return name
    raise ValueError(f"{path} is neither the earlier nor the new one")


@lru_cache(maxsize=4)
def numbers_of(seed: int) -> np.ndarray:
    return sitk.GetArrayFromImage(image(seed))


def one_state(found: list[str]) -> str:
    if len(set(found)) != 1:
        raise ValueError(f"a mixture: {found}")
    return found[0]


# Folders and files.


def write_folder(root: Path, version: str) -> None:
    with new_folder(root / "out", overwrite=True, recognized_by="record.json") as folder:
        write_text(version * 1000, folder / "text.txt")
        write_image(image(SEEDS[version]), folder / "image.nrrd")
        (folder / "below").mkdir()
        write_text(version * 1000, folder / "below" / "text.txt")
        write_json({"version": version}, folder / "record.json")


def folder_state(root: Path) -> str:
    out = root / "out"
    if not out.exists():
        return ABSENT
    return one_state(
        [
            which_text(out / "text.txt"),
            which_image(out / "image.nrrd"),
            which_text(out / "below" / "text.txt"),
            json.loads((out / "record.json").read_text())["version"],
        ]
    )


def write_files(root: Path, version: str) -> None:
    for extension in (".nrrd", ".nii.gz"):
        write_image(image(SEEDS[version]), root / f"image{extension}")
    write_text(version * 1000, root / "text.txt")


def files_state(root: Path) -> str:
    # Each file by itself is whole; the last one says how far the work came.
    for extension in (".nrrd", ".nii.gz"):
        which_image(root / f"image{extension}")
    return which_text(root / "text.txt")


def write_in_temporary(root: Path) -> None:
    with temporary_folder("links", root) as folder:
        for number in range(3):
            (folder / f"{number}.dcm").symlink_to(root / "text.txt")
    write_text(NEW * 1000, root / "text.txt")


def temporary_state(root: Path) -> str:
    return which_text(root / "text.txt")


# Models.


@lru_cache(maxsize=2)
def network() -> DCANet:
    torch.manual_seed(1)
    return DCANet(metadata(NEW).partition.owners, n_filters=1, n_stages=[[1] * 4] * 3, norm="instance").eval()


def metadata(name: str) -> Metadata:
    return Metadata(
        name=name,
        description="Random weights; what it finds means nothing.",
        vocabulary=AMOS,
        spacing=(8.0, 8.0, 8.0),
        orientation="RAS",
        hu_window=(-160.0, 240.0),
        patch=(32, 32, 32),
        partition=partition({organ.label: 1000 - organ.label for organ in AMOS}, "average"),
        training_data=(TrainingData("No data", 0, 0, "CC0-1.0"),),
        limits=("Random weights.",),
    )


def write_bundle(root: Path, version: str) -> None:
    save_bundle(root / "model", network(), metadata(version), overwrite=True)


def bundle_state(root: Path) -> str:
    if not (root / "model").exists():
        return ABSENT
    bundle = Bundle.load(root / "model")
    bundle.network()
    return bundle.metadata.name


def replace_bundle(root: Path) -> None:
    with replacing(root / "model") as (folder, _):
        save_bundle(folder, network(), metadata(NEW), overwrite=True)


def replaced_state(root: Path) -> str:
    kept = sorted(root.glob("model-before-*"))
    for folder in [*kept, *root.glob("model-new-*")]:
        Bundle.load(folder).network()
    if not (root / "model").exists():
        # Its two renames cannot be one, as both stay; a person sees both models under plain names.
        return EARLIER if kept else ABSENT
    return bundle_state(root)


def prepare_source(root: Path) -> None:
    (root / "source").mkdir()
    folder = save_bundle(root / "source" / "folder", network(), metadata(NEW)).folder
    with zipfile.ZipFile(root / "source" / "model.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    (root / "models").mkdir()


def added_state(root: Path) -> str:
    found = sorted((root / "models").glob("[!.]*"))
    for folder in found:
        Bundle.load(folder).network()
    if len(found) > 1:
        raise ValueError(f"too many models: {found}")
    return NEW if found else ABSENT


# Segmentations and training cases.


def prepare_segmentation(root: Path) -> None:
    sitk.WriteImage(image(1), str(root / "ct.nrrd"))
    save_bundle(root / "bundle", network(), metadata(NEW))
    segment(root, EARLIER)


def segment(root: Path, version: str) -> None:
    job = Job(
        root / "ct.nrrd",
        root / "out",
        Bundle.load(root / "bundle"),
        SegmentOptions(attention_levels=(4,), overlap=0.0 if version == NEW else 0.1, entropy=True),
        device="cpu",
        backend="eager",
        overwrite=True,
    )
    segment_to_folder(job)


def segmentation_state(root: Path) -> str:
    out = root / "out"
    if not out.exists():
        return ABSENT
    if numbers(out / "labels.nrrd").shape != numbers(root / "ct.nrrd").shape:
        raise ValueError("labels of another size")
    for name in ("entropy.nrrd", "attention_tail_level4.nrrd"):
        numbers(out / name)
    # What comes after labels and maps may be lacking, and then the log says so; what is there is whole.
    log = (out / "log.txt").read_text() if (out / "log.txt").exists() else None
    for name in ("volumes.csv", "log.txt", "expert_attention.csv"):
        if (out / name).exists():
            if not (out / name).read_text().endswith("\n"):
                raise ValueError(f"{name} is cut off")
        elif log is not None and name not in log:
            raise ValueError(f"{name} is lacking, and nothing says so")
    return NEW if json.loads((out / "request.json").read_text())["options"]["overlap"] == 0.0 else EARLIER


def add_case(root: Path, version: str) -> None:
    ct = image(1)
    labels = sitk.Cast(ct > 200, sitk.sitkUInt8) * AMOS.by_key["liver"].label
    name = f"case-{version}"
    add_corrected_case(root / "training", name, ct, labels, AMOS, ["liver"], ("model", "0" * 64))


def training_state(root: Path) -> str:
    folder = root / "training"
    for case in list_case_folders(folder):
        read_case(case)
        require_unchanged(case)
    names = {case.name for case in read_dataset(folder)}
    if "case-earlier" not in names:
        return ABSENT
    listed = json.loads((folder / "dataset.json").read_text())["training"]
    if not any("case-earlier" in entry["image"] for entry in listed):
        raise ValueError("the earlier case is in the list no more")
    return NEW if "case-new" in names else EARLIER


# A cohort's ledger.


def write_ledger(root: Path, name: str) -> None:
    ledger = Ledger(root / "cohort.sqlite")
    ledger.begin({"weights": "0"})
    ledger.enter([Case(key, key, key, ("/a",), False, "1") for key in (EARLIER, NEW)], [])
    ledger.finish(Outcome(name, "ok", volumes_ml={"liver": 1.0}))
    ledger.close()


def ledger_state(root: Path) -> str:
    ledger = Ledger(root / "cohort.sqlite")
    done = {entry.key for entry in ledger.iter_entries() if entry.outcome is not None}
    ledger.close()
    return ABSENT if EARLIER not in done else NEW if NEW in done else EARLIER


def finish_cohort(root: Path, version: str) -> None:
    """The end of a cohort: one more outcome, then its report and its table."""
    write_ledger(root, version)
    settings = Settings(str(root), str(root), "0", SegmentOptions())
    ledger = Ledger(root / "cohort.sqlite")
    state = RunProgress()
    try:
        ledger.note("source", version * 1000)
        _report(Cohort(root, settings, Rules(2), AMOS, "model"), root, ledger, state)
    finally:
        ledger.close()
    if state.messages:
        # The command prints them, and its next run writes the files again.
        raise OutputError(state.messages[0])


def cohort_state(root: Path) -> str:
    done = ledger_state(root)
    page, rows = (root / "report.html").read_text(), (root / "volumes.csv").read_text()
    if not page.rstrip().endswith("</html>") or not rows.endswith("\n") or rows.count("\n") != 3:
        raise ValueError("the report or the table is cut off")
    return done if NEW * 1000 in page else EARLIER


# Training.


def write_run(root: Path, version: str) -> None:
    """What a training run writes in its folder: checkpoint, best weights, pseudo-labels, a table and a plot."""

    state = {"version": version, "network": {"weight": torch.full((8, 8), float(SEEDS[version]))}}
    remove_leftovers(root / "last.pt")
    save_checkpoint(root / "last.pt", state)
    compact = {
        **{"options": {}, "owners": [[1]], "step": SEEDS[version], "best": 0.1, "network": {}, "strategy": {}},
        **{"optimizer": {"state": {}, "param_groups": []}, "scaler": {}, "pending": None},
        "torch_generator": torch.get_rng_state(),
    }
    write_compact(root / "state.npz", compact, {})
    save_case(PreparedCase("case", np.full((4, 4, 4), SEEDS[version], np.float32), None), root / "case.npz")
    scores = Scores(AMOS)
    scores.add(version, {"dice": np.ones(len(AMOS))})
    scores.write_csv(root / "scores.csv")
    save_figure(Figure((1, 1)), root / "figure.png")


def run_state(root: Path) -> str:
    """Each file by itself is whole; the checkpoint is written first, the table after the other data."""

    checkpoint = load_checkpoint(root / "last.pt")
    if float(checkpoint["network"]["weight"].mean()) != SEEDS[checkpoint["version"]]:
        raise ValueError("a mixture of checkpoints")
    if read_compact(root / "state.npz")[0]["step"] not in SEEDS.values():
        raise ValueError("a wrong state")
    if len(np.unique(load_case(root / "case.npz").hu)) != 1:
        raise ValueError("a wrong case")
    Image.open(root / "figure.png").load()
    rows = (root / "scores.csv").read_text().splitlines()
    if len(rows) != 3:
        raise ValueError("the table is cut off")
    return rows[1].partition(",")[0]


def all_workloads() -> list[Workload]:
    def earlier(write: Callable[[Path, str], object]) -> Callable[[Path], object]:
        return lambda root: write(root, EARLIER)

    def new(write: Callable[[Path, str], object]) -> Callable[[Path], object]:
        return lambda root: write(root, NEW)

    return [
        Workload("folder", earlier(write_folder), new(write_folder), folder_state),
        Workload("files", earlier(write_files), new(write_files), files_state),
        Workload(
            *("temporary", lambda root: write_text(EARLIER * 1000, root / "text.txt"), write_in_temporary),
            temporary_state,
        ),
        Workload("bundle", earlier(write_bundle), new(write_bundle), bundle_state, seconds=0.5),
        Workload("replace", earlier(write_bundle), replace_bundle, replaced_state, repeats=False, seconds=0.5),
        Workload(
            *("add folder", prepare_source, lambda root: add_bundle(root / "source" / "folder", root / "models")),
            *(added_state, ABSENT, False),
        ),
        Workload(
            *("add zip", prepare_source, lambda root: add_bundle(root / "source" / "model.zip", root / "models")),
            *(added_state, ABSENT, False),
        ),
        Workload("training", earlier(add_case), new(add_case), training_state, repeats=False, seconds=0.2),
        Workload("ledger", earlier(write_ledger), new(write_ledger), ledger_state),
        Workload("cohort", earlier(finish_cohort), new(finish_cohort), cohort_state, seconds=0.3),
        Workload("run", earlier(write_run), new(write_run), run_state, seconds=0.5),
        Workload("segment", prepare_segmentation, new(segment), segmentation_state, seconds=1.5),
    ]


def leftovers(root: Path) -> list[str]:
    """Hidden names below ``root``: no work leaves any."""
    found = []
    for place, folders, files in os.walk(root):
        found += [str(Path(place, name).relative_to(root)) for name in (*folders, *files) if name.startswith(".")]
    return found


def fresh(workload: Workload, template: Path, root: Path) -> Path:
    """A new copy of what ``workload`` begins with."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(template, root, symlinks=True)
    return root
