"""Every reader of content that others hand us, each with whole content to damage."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import SimpleITK as sitk
import torch

from dcaseg.cli import main as dca
from dcaseg.cli.console import run_command
from dcaseg.cohort.case import LEDGER
from dcaseg.cohort.discovery import find
from dcaseg.cohort.ledger import Ledger
from dcaseg.dicom.archive import Rules, gathered
from dcaseg.dicom.ct_folder import find_one_ct
from dcaseg.errors import UserError
from dcaseg.file_lock import locked
from dcaseg.imaging.ct_checks import check_ct
from dcaseg.imaging.readers import read_ct, read_labels
from dcaseg.imaging.writers import write_json
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.pipeline import Job, segment_to_folder
from dcaseg.interaction.click_network import load_click_bundle
from dcaseg.method.log_gap import partition
from dcaseg.models.bundle import Bundle, save_bundle
from dcaseg.models.user_models import add_bundle
from dcaseg.organs import AMOS
from dcaseg.synthesis.label_to_ct.label_map import read_label_map
from dcaseg.synthesis.label_to_ct.recipe import Appearance, Deformation, FieldOfView, Filling, Recipe, read_recipe
from dcaseg.synthesis.phantom.case import generate
from dcaseg.training.checkpoints import RunRecord, read_record
from dcaseg.training.compact_state import read_compact
from dcaseg.training.corrections import add_corrected_case, add_unlabeled_ct, list_case_folders, read_dataset
from dcaseg.training.options import TrainingOptions
from dcaseg.training.training_set import TrainingSet
from dcaseg.worker.protocol import ProtocolError, decode_event, decode_request

from .workloads import NEW, metadata, network, write_ledger

# The module of the tests, which are not a package.
sys.path.insert(0, str(Path(__file__).parents[1]))
from dicom_archive import write_ct_series, write_enhanced_ct


@dataclass(frozen=True)
class Reader:
    """``write(folder)`` makes whole content, ``code_of(folder)`` reads it and gives the exit code of the command line.

    ``damages`` is the pattern of the names of the files that are damaged.
    """

    name: str
    write: Callable[[Path], object]
    code_of: Callable[[Path], int]
    damages: str = "*"


@lru_cache(maxsize=1)
def person() -> tuple[sitk.Image, sitk.Image]:
    """The CT and the labels of a synthetic person, small."""
    phantom = generate(3, spacing=(9.0, 9.0, 12.0), orientation="LPS")
    return phantom.ct, phantom.labels


def _reads(read: Callable[[Path], object]) -> Callable[[Path], int]:
    """``read`` as the command line calls it."""
    return lambda folder: run_command(lambda: read(folder) and None)


def _command(*arguments: str) -> Callable[[Path], int]:
    """``dca`` with these arguments, in which ``{}`` stands for the folder."""
    return lambda folder: dca([each.replace("{}", str(folder)) for each in arguments])


def _ct(name: str) -> Callable[[Path], object]:
    return lambda folder: check_ct(read_ct(folder / name, notes=[]))


def _write_ct(name: str, compressed: bool) -> Callable[[Path], object]:
    return lambda folder: sitk.WriteImage(person()[0], str(folder / name), compressed)


def _images() -> list[Reader]:
    names = (
        *(("ct.nii.gz", True), ("ct.nii", False), ("ct.nrrd", True), ("ct.nrrd", False), ("ct.nhdr", False)),
        *(("ct.mha", True), ("ct.mha", False), ("ct.mhd", False)),
    )
    shown = {True: ", compressed", False: ""}
    return [
        Reader(f"{name}{shown[packed]}", _write_ct(name, packed), _reads(_ct(name)), "*.mhd" if "mhd" in name else "*")
        for name, packed in names
    ] + [
        Reader(
            "label map",
            lambda folder: sitk.WriteImage(person()[1], str(folder / "labels.nrrd")),
            _reads(lambda folder: read_labels(folder / "labels.nrrd", [])),
        )
    ]


# DICOM


def _write_series(syntax: str | None) -> Callable[[Path], object]:
    return lambda folder: write_ct_series(folder / "in", person()[0][:, :, 10:20], syntax=syntax)


def _write_multi_frame(folder: Path) -> None:
    write_ct_series(folder / "series", person()[0][:, :, 10:20])
    write_enhanced_ct(folder / "in", folder / "series")
    shutil.rmtree(folder / "series")


def _read_series(folder: Path) -> None:
    found = find_one_ct(folder / "in", None, folder / "out")
    with gathered(found.files, found.name) as links:
        check_ct(read_ct(links, notes=[]))


def _dicom() -> list[Reader]:
    syntaxes = {
        "DICOM": None,
        "DICOM, RLE": "1.2.840.10008.1.2.5",
        "DICOM, JPEG": "1.2.840.10008.1.2.4.70",
        "DICOM, JPEG 2000": "1.2.840.10008.1.2.4.90",
    }
    return [Reader(name, _write_series(syntax), _reads(_read_series), "IM*") for name, syntax in syntaxes.items()] + [
        Reader("DICOM, multi-frame", _write_multi_frame, _reads(_read_series), "IM*"),
        Reader(
            "search of a cohort",
            _write_series(None),
            _reads(lambda folder: find(folder / "in", folder / "out", Rules(2))),
            "IM*",
        ),
    ]


# Models


def _write_bundle(folder: Path) -> None:
    save_bundle(folder / "model", network(), metadata(NEW))


def _write_zip(folder: Path) -> None:
    bundle = save_bundle(folder / "model", network(), metadata(NEW)).folder
    with zipfile.ZipFile(folder / "model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(bundle.rglob("*")):
            archive.write(path, path.relative_to(bundle))
    shutil.rmtree(bundle)


def _read_weights_as_described(folder: Path) -> None:
    """Reads a bundle whose author wrote the checksum of the damaged weights into the metadata."""
    import hashlib

    file = folder / "model" / "configs" / "metadata.json"
    document = json.loads(file.read_text())
    weights = folder / "model" / document["dca"]["weights"]["file"]
    content = weights.read_bytes()
    document["dca"]["weights"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    file.write_text(json.dumps(document))
    Bundle.load(folder / "model").network()


def _models() -> list[Reader]:
    return [
        Reader("bundle", _write_bundle, _command("bundle", "verify", "{}/model"), "*.json"),
        Reader("bundle info", _write_bundle, _command("bundle", "info", "{}/model"), "metadata.json"),
        Reader("weights", _write_bundle, _reads(_read_weights_as_described), "*.safetensors"),
        Reader(
            "bundle in a zip file", _write_zip, _reads(lambda folder: add_bundle(folder / "model.zip", folder / "m"))
        ),
        Reader("bundle of clicks", _write_click_bundle, _reads(_read_click_bundle), "metadata.json"),
    ]


def _write_click_bundle(folder: Path) -> None:
    from dcaseg.interaction.click_network import ClickNetwork, save_click_bundle

    torch.manual_seed(1)
    made = ClickNetwork(n_filters=2)
    save_click_bundle(folder / "model", made, "clicks", (), 1)


def _read_click_bundle(folder: Path) -> None:
    load_click_bundle(folder / "model").network()


# Results, training data, runs


def _write_result(folder: Path) -> None:
    _write_bundle(folder)
    sitk.WriteImage(person()[0], str(folder / "ct.nrrd"))
    options = SegmentOptions(overlap=0.0, entropy=True, review=True)
    bundle = Bundle.load(folder / "model")
    segment_to_folder(Job(folder / "ct.nrrd", folder / "result", bundle, options, device="cpu", backend="eager"))
    # The labels that are to be found, as the network has random weights.
    sitk.WriteImage(person()[1], str(folder / "result" / "labels.nrrd"))


def _correct(folder: Path) -> int:
    labels = person()[1]
    liver = np.argwhere(sitk.GetArrayViewFromImage(labels) == AMOS.by_key["liver"].label)
    x, y, z = labels.TransformIndexToPhysicalPoint([int(each) for each in liver[len(liver) // 2][::-1]])
    _relocate(folder)
    command = ["correct", f"{folder}/result", "--organ", "spleen", "--add", f"{-x},{-y},{z}", "--no-scene"]
    return dca([*command, "-o", f"{folder}/corrected"])


def _relocate(folder: Path) -> None:
    """Let the result name the CT where it is now, if its record still can be read."""
    file = folder / "result" / "request.json"
    try:
        record = json.loads(file.read_text())
        if isinstance(record.get("ct"), str) and record["ct"].endswith("ct.nrrd"):
            file.write_text(json.dumps({**record, "ct": str(folder / "ct.nrrd")}))
    except (ValueError, AttributeError, RecursionError):
        pass


def _report(folder: Path) -> int:
    _relocate(folder)
    return dca(["report", f"{folder}/result", "-o", f"{folder}/report.html"])


def _write_training(folder: Path) -> None:
    ct, labels = person()
    add_corrected_case(folder / "training", "case-1", ct, labels, AMOS, ["liver"], ("model", "0" * 64))
    other = sitk.Cast(ct + 1, sitk.sitkInt16)
    other.CopyInformation(ct)
    add_unlabeled_ct(folder / "training", other)


def _read_training(folder: Path) -> None:
    read_dataset(folder / "training")
    for case in list_case_folders(folder / "training"):
        from dcaseg.training.corrections import read_case, require_unchanged

        read_case(case)
        require_unchanged(case)


def _write_run(folder: Path) -> None:
    groups = partition({organ.label: 100 - organ.label for organ in AMOS}, "average")
    record = RunRecord(AMOS, TrainingOptions(), TrainingSet.from_phantoms(2, 1, 1), groups)
    write_json(record.to_json(), folder / "run.json")
    lines = [json.dumps({"step": step, "total": 1.0, "dice": {"mean": 0.1, "liver": 0.2}}) for step in range(5)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def _read_run(folder: Path) -> None:
    from dcaseg.evaluation.figures.curves import plot_training_curve, read_log

    record = read_record(folder)
    plot_training_curve(read_log(folder / "log.jsonl"), record.vocabulary, "run")


def _write_state(folder: Path) -> None:
    from dcaseg.training.compact_state import write_compact
    from dcaseg.training.trainer import Trainer

    assert Trainer is not None
    state = {
        "options": TrainingOptions().to_json(),
        "owners": [[1], [2], [3]],
        "step": 3,
        "best": 0.1,
        "network": {"weight": torch.ones(4, 4)},
        "strategy": {},
        "optimizer": {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(4, 4)}}, "param_groups": []},
        "scaler": {},
        "pending": None,
        "torch_generator": torch.get_rng_state(),
    }
    write_compact(folder / "state.npz", state, {"record": 1})


def _write_list(folder: Path) -> None:
    ct, labels = person()
    sitk.WriteImage(ct, str(folder / "a.nrrd"))
    sitk.WriteImage(labels, str(folder / "b.nrrd"))
    case = {"image": "a.nrrd", "label": "b.nrrd"}
    document = {"name": "x", "training": [case], "unlabelled": [], "validation": [], "test": []}
    (folder / "data.json").write_text(json.dumps(document))


def _write_label_map(folder: Path) -> None:
    sitk.WriteImage(person()[1], str(folder / "labels.nrrd"))
    rows = [f"{organ.label} {organ.key} 10 20 30 255" for organ in AMOS]
    (folder / "names.ctbl").write_text("\n".join(["# names", "0 background 0 0 0 0", *rows]) + "\n")
    (folder / "anatomy.json").write_text(json.dumps({"spacing": [9, 9, 12], "names": {"liver": "Liver"}, "parts": {}}))


def _write_table(folder: Path) -> None:
    rows = "".join(f"{organ.label},{organ.key}\n" for organ in AMOS)
    (folder / "table.csv").write_text(f"id,name\n{rows}")


def _read_table(folder: Path) -> None:
    from dcaseg.evaluation.scoring import read_table

    read_table(folder / "table.csv", AMOS)


def _read_ledger(folder: Path) -> None:
    with locked(folder / "lock.sqlite"):
        ledger = Ledger(folder / LEDGER)
        try:
            ledger.begin({"weights": "0"})
            ledger.count_by_status()
            list(ledger.iter_entries())
            ledger.get_pending_keys()
            ledger.note("source", "x")
        finally:
            ledger.close()


def _write_cohort(folder: Path) -> None:
    write_ledger(folder, "earlier")
    with locked(folder / "lock.sqlite"):
        pass
    for extra in ("cohort.sqlite-wal", "cohort.sqlite-shm"):
        (folder / extra).unlink(missing_ok=True)


def _write_recipe(folder: Path) -> None:
    appearance = Appearance(
        "native", {"liver": 60.0}, {"liver": 5.0}, {}, {}, 3.0, 9.0, {"stomach": Filling((0.0,), (1.0,), (-970.0,))}
    )
    view = FieldOfView((0.0, 0.0, 0.0), (300.0, 300.0, 300.0))
    recipe = Recipe(1, "atlas", Deformation(blend={"other": 0.5}), appearance, view, missing=("spleen",))
    write_json(recipe.to_json(), folder / "recipe.json")


# Lines and attributes


def _write_lines(folder: Path) -> None:
    request = {
        "version": 1, "type": "segment", "id": "1", "ct": "/a.nrrd", "out": "/b", "options": {"overlap": 0.5}
    }  # fmt: skip
    event = {"type": "progress", "id": "1", "fraction": 0.5, "message": "x"}
    (folder / "request.json").write_text(json.dumps(request))
    (folder / "event.json").write_text(json.dumps(event))


def _read_lines(folder: Path) -> None:
    try:
        decode_request((folder / "request.json").read_bytes().replace(b"\n", b" "))
        decode_event((folder / "event.json").read_bytes().replace(b"\n", b" "))
    except ProtocolError as error:
        # The worker sends it as the event of an error; the panel shows it.
        raise UserError(str(error)) from None


def _write_scene(folder: Path) -> None:
    from dcaseg.review.schema import Alternative, Finding, OrganNote, Reason, Review
    from DCASegmentationLib.scene.review_record import Origin, ReviewState, write_origin, write_review, write_state

    place = Finding(
        *(1, "liver", 6, "Liver", 2.0, 1.0, 3.0, (1.0, 2.0, 3.0), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        *(((0, 0, 0), (1, 1, 1)), (Reason("island", "An island."),)),
        Alternative("experts", (0, 6), 1.0, "The experts hold nothing."),
    )
    found: dict[str, str] = {}
    node = SimpleNamespace(SetAttribute=found.__setitem__, RemoveAttribute=lambda name: found.pop(name, None))
    review = Review("AMOS", {"size": [1, 2, 3]}, (place,), (OrganNote("liver", 6, 1.0, ("small",)),))
    write_origin(node, Origin("model", "0" * 64, "AMOS", "2026-01-01"))
    write_review(node, review, {1: np.zeros(10, np.uint8)})
    write_state(node, ReviewState({1: "accepted"}, {1: {"liver": ""}}, {"spleen"}, {"liver"}))
    for name, value in found.items():
        (folder / f"{name}.json").write_text(value)


def _read_scene(folder: Path) -> None:
    from DCASegmentationLib.scene.review_record import read_origin, read_review, read_state, read_suggestion, unpack

    content = {path.stem: path.read_text(errors="replace") for path in folder.glob("*.json")}
    # The only method of a node that is called.
    node = SimpleNamespace(GetAttribute=content.get)
    read_origin(node)
    read_review(node)
    read_suggestion(node, 1)
    for segments in read_state(node).before.values():
        for packed in segments.values():
            unpack(packed, 10)


def all_readers() -> list[Reader]:
    return [
        *_images(),
        *_dicom(),
        *_models(),
        Reader("dca report", _write_result, _report, "result/*.[jct][sx][ovt]*"),
        Reader("dca correct", _write_result, _correct, "result/*.[jc]s[ov]*"),
        Reader("corrected cases", _write_training, _reads(_read_training), "*.json"),
        Reader("run of dca train", _write_run, _reads(_read_run)),
        Reader("compact state", _write_state, _reads(lambda folder: read_compact(folder / "state.npz"))),
        Reader("data list", _write_list, _command("dataset", "check", "{}/data.json"), "*.json"),
        Reader("label map with names", _write_label_map, _reads(read_label_map), "[na]*"),
        Reader("table of labels", _write_table, _reads(_read_table)),
        Reader("recipe", _write_recipe, _reads(lambda folder: read_recipe(folder / "recipe.json"))),
        Reader("ledger", _write_cohort, _reads(_read_ledger), "*.sqlite"),
        Reader("worker lines", _write_lines, _reads(_read_lines)),
        Reader("scene records", _write_scene, _reads(_read_scene)),
    ]
