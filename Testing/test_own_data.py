"""From a folder of CTs to a segmentation: list, train, stop, resume, evaluate, export, segment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

TINY = ("--spacing", "14,14,14", "--filters", 1, "--patch", 32, "--batch", 1, "--validate-every", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def own_list(coarse_phantom, tmp_path_factory) -> Path:
    """A data list of four CTs: two labeled, one unlabeled, and one for validation and testing."""
    from dcaseg.organs import AMOS
    from dcaseg.training.datalist import Datalist, Entry, write_datalist

    folder = tmp_path_factory.mktemp("own")
    entries = []
    for name in "abcde":
        image, label = folder / f"{name}.nii.gz", folder / f"{name}_labels.nii.gz"
        image.symlink_to(coarse_phantom / "ct.nii.gz")
        label.symlink_to(coarse_phantom / "labels.nii.gz")
        entries.append(Entry(image, label))
    a, b, c, d, e = entries
    partly_told = Entry(b.image, b.label, unannotated=(), label_map={6: 6, 1: 1})
    datalist = Datalist(AMOS, (a, partly_told), (c,), (d,), (e,), name="own CTs", licence="not stated", source="a test")
    write_datalist(datalist, folder / "list.json")
    return folder / "list.json"


@pytest.mark.slow
def test_train_evaluate_export_and_segment_with_a_folder_of_cts(dca, own_list, tmp_path):
    run, model = tmp_path / "run", tmp_path / "model"
    first = dca("train", "-o", run, "--data", own_list, *TINY, "--steps", 4, "--minutes", 0)
    assert first.code == 0, first.err
    resumed = dca("train", "-o", run, "--resume", "--validate-every", 2, "--tensorboard")
    assert resumed.code == 0, resumed.err
    assert [path.name.startswith("events") for path in (run / "tensorboard").iterdir()] == [True]
    packed = dca("bundle", "export", run, "-o", model, "--name", "own")
    assert packed.code == 0, packed.err
    assert f"dca evaluate --bundle {model} --data LIST --group test" in packed.out and "--phantoms" not in packed.out
    metadata = json.loads((model / "configs" / "metadata.json").read_text())["dca"]
    assert metadata["training_data"] == [
        {"name": "own CTs", "labelled": 2, "unlabelled": 1, "licence": "not stated", "source": "a test",
         "synthetic": False}
    ]  # fmt: skip
    scores = tmp_path / "scores.csv"
    wanted = ("--metrics", "dice,asd,hd95,nsd", "--table", tmp_path / "scores.md")
    measured = dca("evaluate", "--bundle", model, "--data", own_list, "-o", scores, *wanted)
    assert measured.code == 0, measured.err
    assert [line.split(",")[:2] for line in scores.read_text().splitlines()[1::2]] == [
        [metric, "e.nii.gz"] for metric in ("dice", "asd", "hd95", "nsd")
    ]
    assert (tmp_path / "scores.md").read_text().startswith("| Method | Avg. Dice |")
    ct = own_list.parent / "e.nii.gz"
    segmented = dca("segment", ct, "-o", tmp_path / "result", "--bundle", model, "--no-scene", "--device", "cpu")
    assert segmented.code == 0, segmented.err
    assert (tmp_path / "result" / "labels.nrrd").exists()


def test_a_baseline_trains_on_all_labels_and_its_model_says_that_it_is_one(dca, own_list, tmp_path):
    run = tmp_path / "run"
    trained = dca("train", "-o", run, "--data", own_list, *TINY, "--steps", 1, "--strategy", "vnet", "--all-labels")
    assert trained.code == 0, trained.err
    record = json.loads((run / "run.json").read_text())
    assert len(record["cohort"]["labelled"]) == 2 and record["options"]["strategy"] == "vnet"
    assert dca("bundle", "export", run, "-o", tmp_path / "model").code == 0
    metadata = json.loads((tmp_path / "model" / "configs" / "metadata.json").read_text())
    assert any("a method that DCA is compared with" in limit for limit in metadata["dca"]["limits"])


def test_missing_data_is_reported_before_training(dca, own_list, tmp_path):
    content = json.loads(own_list.read_text())
    alone = own_list.with_name("alone.json")
    alone.write_text(json.dumps({"training": content["training"][:1]}))
    trained = dca("train", "-o", tmp_path / "run", "--data", alone, *TINY, "--steps", 1)
    assert trained.code == 0, trained.err
    for said in ("only one labeled case", "no unlabeled case", "no validation case"):
        assert said in trained.err
    alone.write_text(json.dumps({"training": [{"image": "gone.nii.gz", "label": "gone.nii.gz"}]}))
    refused = dca("train", "-o", tmp_path / "other", "--data", alone, *TINY)
    assert refused.code == 2 and "gone.nii.gz" in refused.err


def test_tensorboard_holds_losses_groups_and_an_example(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from dcaseg.training.tensorboard import FOLDER, TensorBoardLog
    from dcaseg.training.trainer import Trainer
    from test_training import OPTIONS, THREE_BALLS, case_of_balls

    trainer = Trainer(tmp_path, OPTIONS, THREE_BALLS, [case_of_balls(1)], [])
    log = TensorBoardLog(tmp_path, THREE_BALLS, trainer.partition, OPTIONS)
    log.add({"step": 3, "head": 0.5, "weight": 0.1, "dice": {"mean": 0.4, "large": 0.7, "small": 0.1}})
    log.add_example(trainer.evaluated_network, case_of_balls(2), 3)
    log.close()
    read = EventAccumulator(str(tmp_path / FOLDER)).Reload()
    assert {"loss/head", "weight", "dice/large", "dice of groups/head", "dice of groups/tail"} <= set(
        read.Tags()["scalars"]
    )
    assert read.Scalars("dice of groups/tail")[0].value == pytest.approx(0.1)
    assert read.Images("example: CT, truth, result")[0].width == 3 * OPTIONS.patch[2]
