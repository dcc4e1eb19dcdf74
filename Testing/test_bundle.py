"""Bundles are saved completely, loaded safely, and refused with a reason."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dcaseg.errors import BundleError, OutputError, UserError
from dcaseg.method.log_gap import partition
from dcaseg.method.network import DCANet
from dcaseg.models import bundle as bundles
from dcaseg.models.bundle import Bundle, describe_bundle, replacing, save_bundle, save_scores, verify
from dcaseg.models.metadata import MeasuredScores, Metadata, TrainingData
from dcaseg.models.metadata_reader import compute_max_weight_bytes
from dcaseg.models.store import find_shipped_bundles
from dcaseg.organs import AMOS, SYNAPSE

COUNTS = {organ.label: 4 ** (1 + organ.label % 5) for organ in AMOS}
SHIPPED = find_shipped_bundles()
torch.set_num_threads(1)

WEIGHTS = Path("models", "model.safetensors")
METADATA = Path("configs", "metadata.json")
DESCRIBED = {"file": "models/model.safetensors", "sha256": "0" * 64, "bytes": 10, "dtype": "float16"}


def metadata(vocabulary=AMOS) -> Metadata:
    return Metadata(
        name="small-test-model",
        description="Random weights; it finds nothing.",
        vocabulary=vocabulary,
        spacing=(4.0, 4.0, 5.0),
        orientation="RAS",
        hu_window=(-125.0, 275.0),
        patch=(32, 48, 64),
        partition=partition({organ.label: COUNTS[organ.label] for organ in vocabulary}, "average"),
        training_data=(TrainingData("No data", 0, 0, "CC0-1.0"),),
        limits=("Random weights: nothing it says is true.",),
    )


def small_network(vocabulary=AMOS) -> DCANet:
    torch.manual_seed(5)
    return DCANet(metadata(vocabulary).partition.owners, n_filters=2, norm="batch").eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("saved") / "model", small_network(), metadata()).folder


@pytest.fixture
def network() -> DCANet:
    return small_network()


@pytest.fixture
def folder(tmp_path, saved) -> Path:
    """A copy of the bundle that the test may damage."""
    return shutil.copytree(saved, tmp_path / "model")


def change_metadata(folder: Path, change) -> None:
    path = folder / METADATA
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def replace_weights(folder: Path, content: bytes, file: Path = WEIGHTS) -> None:
    """Replace the weights and their checksum, as an attacker would."""
    (folder / WEIGHTS).unlink()
    (folder / file).write_bytes(content)
    described = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), "file": file.as_posix()}
    change_metadata(folder, lambda found: found["dca"]["weights"].update(described))


def store(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Write ``state`` into the bundle as other programs would, with the safetensors library."""
    replace_weights(folder, safetensors.torch.save(state))


def change_state(folder: Path, change) -> None:
    state = safetensors.torch.load((folder / WEIGHTS).read_bytes())
    change(state)
    store(folder, state)


def complaint(folder: Path) -> str:
    """The message to the user when the model is loaded."""
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder).network()
    assert "\n" not in caught.value.problem
    assert caught.value.remedy
    return caught.value.problem


def test_a_loaded_bundle_has_the_same_metadata_and_network_outputs(tmp_path, network):
    saved = save_bundle(tmp_path / "model", network, metadata(), dtype="float32")

    loaded = Bundle.load(tmp_path / "model")

    assert loaded.metadata == saved.metadata
    assert replace(loaded.metadata, network={}, weights=metadata().weights) == metadata()
    again = loaded.network()
    assert not again.training
    volume = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        assert torch.equal(again(volume), network(volume))


def test_a_bundle_has_the_files_of_a_monai_bundle(folder):
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    assert files == ["LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", WEIGHTS.as_posix()]
    content = json.loads((folder / METADATA).read_text())
    assert {"version", "monai_version", "pytorch_version", "numpy_version", "task", "description", "authors"} <= {
        *content
    }
    output = content["network_data_format"]["outputs"]["pred"]
    assert output["num_channels"] == 16
    assert output["channel_def"]["0"] == "background"
    assert output["channel_def"]["10"] == "Pancreas"


@pytest.mark.slow
def test_half_precision_halves_the_file_and_is_loaded_as_float32(tmp_path, network):
    whole = save_bundle(tmp_path / "whole", network, metadata(), dtype="float32")
    half = save_bundle(tmp_path / "half", network, metadata())

    assert half.metadata.weights.dtype == "float16"
    assert half.metadata.weights.bytes < 0.75 * whole.metadata.weights.bytes
    for name, tensor in half.network().state_dict().items():
        expected = network.state_dict()[name]
        assert tensor.dtype == expected.dtype
        torch.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-6)


def test_weights_beyond_half_precision_are_stored_as_float32(tmp_path, network):
    with torch.no_grad():
        network.encoder.blocks[0][1].running_var.fill_(1e6)

    loaded = save_bundle(tmp_path / "model", network, metadata()).network()

    assert torch.equal(loaded.encoder.blocks[0][1].running_var, torch.full((2,), 1e6))


def test_a_folder_is_replaced_only_on_request_and_only_if_it_is_a_bundle(tmp_path, network, folder):
    with pytest.raises(OutputError, match="already exists"):
        save_bundle(folder, network, metadata())
    save_bundle(folder, network, replace(metadata(), name="second"), overwrite=True)
    assert Bundle.load(folder).metadata.name == "second"

    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter.txt").write_text("years of work")
    with pytest.raises(OutputError, match="not replaced"):
        save_bundle(thesis, network, metadata(), overwrite=True)
    assert (thesis / "chapter.txt").read_text() == "years of work"


def test_a_network_that_does_not_fit_its_metadata_leaves_nothing_behind(tmp_path):
    with pytest.raises(BundleError, match="14 channels, but AMOS needs 16"):
        save_bundle(tmp_path / "model", small_network(SYNAPSE), metadata())

    assert list(tmp_path.iterdir()) == []


def test_scores_are_added_without_touching_the_weights(folder):
    before = (folder / WEIGHTS).read_bytes()
    scores = MeasuredScores("synthetic CT", 10, {"liver": 0.9, "pancreas": 0.7}, "dca evaluate")

    save_scores(folder, scores)

    assert Bundle.load(folder).metadata.scores == scores
    assert json.loads((folder / METADATA).read_text())["eval_metrics"] == {"mean_dice": pytest.approx(0.8)}
    assert "Mean Dice 0.800 over 10 cases: synthetic CT." in (folder / "docs" / "README.md").read_text()
    assert (folder / WEIGHTS).read_bytes() == before


def test_the_model_card_states_limits_data_and_license(folder):
    card = (folder / "docs" / "README.md").read_text()

    for fact in (
        "Random weights: nothing it says is true.",
        "| No data | 0 | 0 | CC0-1.0 |",
        "Apache-2.0",
        "4 x 4 x 5 mm",
    ):
        assert fact in card
    assert "Apache License" in (folder / "LICENSE").read_text()


def test_verify_reports_checks_and_warnings(folder):
    verification = verify(folder)

    assert len(verification.checks) == 3
    assert verification.warnings == ("The metadata contains no measured scores.",)


def test_verify_reports_a_changed_configuration(folder):
    path = folder / "configs" / "inference.json"
    config = json.loads(path.read_text())
    config["run"] = ["$__import__('os').getcwd()"]
    path.write_text(json.dumps(config))
    (folder / "LICENSE").unlink()

    (folder / "scripts").mkdir()
    (folder / "scripts" / "model.py").write_text("import os")

    verification = verify(folder)

    assert verification.code == ("configs/inference.json", "scripts/model.py")
    assert "LICENSE is missing." in verification.warnings


@pytest.mark.parametrize("name", ["configs/logging.conf", "models/model.ts", "run", "docs/figure.svg", ".git/hooks/x"])
def test_verify_reports_every_file_that_is_no_document(folder, name):
    """MONAI evaluates expressions in its logging configuration; a list of what is dangerous is never complete."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("[handler_x]\nclass=StreamHandler\nargs=(__import__('os').getcwd(),)\n")
    for document in ("docs/more.md", "docs/picture.PNG", "NOTICE", "docs/data_license.txt"):
        (folder / document).write_text("text")
    assert verify(folder).code == (name,)


def test_the_command_refuses_a_bundle_with_code_for_other_programs(folder, dca):
    assert dca("bundle", "verify", folder).code == 0
    (folder / "configs" / "train.yaml").write_text("run: $__import__('os').getcwd()")

    refused = dca("bundle", "verify", folder)

    assert refused.code == 2
    assert "may run code on this computer: configs/train.yaml" in " ".join(refused.err.split())
    assert "valid bundle" not in refused.out


def test_weight_files_are_compatible_with_the_safetensors_library(tmp_path, network):
    saved = save_bundle(tmp_path / "model", network, metadata(), dtype="float32").folder

    state = safetensors.torch.load_file(saved / WEIGHTS)

    assert set(state) == set(network.state_dict())
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    store(saved, network.state_dict())
    again = Bundle.load(saved).network().state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


def test_information_has_the_rows_a_user_needs(folder):
    rows = dict(describe_bundle(Bundle.load(folder)))

    assert rows["Name"] == "small-test-model 0.1.0"
    assert rows["Grid"] == "4 x 4 x 5 mm, RAS"
    assert rows["Mean Dice"] == "not measured"
    listed = ", ".join(rows[f"{group} expert"] for group in ("Head", "Medium", "Tail"))
    assert sorted(listed.split(", ")) == sorted(organ.name for organ in AMOS)


def test_an_older_bundle_without_overlap_uses_half_a_side(folder):
    change_metadata(folder, lambda content: content["dca"].pop("overlap"))

    assert Bundle.load(folder).metadata.overlap == 0.5


def test_metadata_load_without_torch():
    script = "import sys, dcaseg.models.metadata_reader, dcaseg.models.store;print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


# Bundles that are refused, each with its own message.


def test_a_wrong_checksum_is_refused(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WEIGHTS).write_bytes(content)

    assert "the SHA-256 checksum differs" in complaint(folder)


def test_truncated_weights_are_refused(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:1000])

    assert "it is incomplete" in complaint(folder)


def test_weights_of_torch_save_are_not_opened(folder):
    """They are pickles, which can contain code."""
    replace_weights(folder, b"any", Path("models", "model.pt"))

    assert "which can contain code. It was not opened" in complaint(folder)


def test_a_file_that_contains_no_weights_is_refused(folder):
    replace_weights(folder, b"GIF89a" + bytes(100))

    assert "cannot be read as" in complaint(folder)


def test_missing_weights_of_the_network_are_refused(folder):
    change_state(folder, lambda state: [state.pop(name) for name in list(state) if name.startswith("experts.2.head")])

    assert complaint(folder).startswith(f"{WEIGHTS.as_posix()} lacks weights of the network: experts.2.head.")


def test_weights_of_another_network_are_refused(folder):
    change_state(folder, lambda state: state.update({"decoder.weight": torch.zeros(2)}))

    assert "weights that the network does not have: decoder.weight" in complaint(folder)


def test_weights_of_another_shape_are_refused(folder):
    change_state(folder, lambda state: state.update({"experts.0.head.weight": torch.zeros(14, 2, 1, 1, 1)}))

    message = complaint(folder)
    assert "experts.0.head.weight has the shape 14 x 2 x 1 x 1 x 1, but the network needs 16 x 2 x 1 x 1 x 1" in message


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_weights_of_another_type_are_refused(folder, dtype):
    change_state(folder, lambda state: state.update({"experts.0.head.bias": torch.zeros(16, dtype=dtype)}))

    assert "experts.0.head.bias has values of type" in complaint(folder)


def test_weights_that_are_not_finite_are_refused(folder):
    change_state(folder, lambda state: state["experts.0.head.bias"].fill_(float("nan")))

    assert "experts.0.head.bias contains values that are not finite" in complaint(folder)


@pytest.mark.parametrize("key", ["weights", "spacing_mm", "vocabulary", "partition", "network", "limits", "format"])
def test_a_missing_key_of_the_metadata_is_named(folder, key):
    change_metadata(folder, lambda content: content["dca"].pop(key))

    assert complaint(folder) == f"The model's metadata lacks 'dca.{key}'."


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("spacing_mm", [4.0, 4.0], "dca.spacing_mm is a list of 2, not 3 numbers"),
        ("spacing_mm", [4.0, 0.0, 4.0], "dca.spacing_mm[1] is 0.0, not a number from 0.2 to 50"),
        ("patch", [32, 32, 40], "dca.patch is not a possible size"),
        ("overlap", 1.0, "dca.overlap is 1.0, not a number from 0 to 0.95"),
        ("orientation", "RAR", "not three directions"),
        ("hu_window", "wide", "dca.hu_window is 'wide', not 2 numbers"),
        ("partition", {"mode": "top2"}, "dca.partition is not a partition"),
        (
            "scores",
            {"data": "", "cases": 1, "dice": {"brain": 0.9}, "command": ""},
            "dca.scores.dice is not for organs",
        ),
        ("network", {"owners": [[1]], "colour": "red"}, "dca.network.colour is unknown"),
        ("network", {"owners": [[2], [], []]}, "has 2 channels, but AMOS needs 16"),
        ("network", {"owners": [[*range(1, 15), 14], [], []]}, "network options are wrong"),
        (
            "network",
            {"owners": [[*range(1, 16)], [], []], "n_filters": 600},
            "dca.network.n_filters is 600, not a number from 1 to 32",
        ),
        (
            "network",
            {"owners": [[*range(1, 16)], [], []], "n_stages": [[10**6] * 4] * 3},
            "dca.network.n_stages[0][0] is 1000000, not a number from 1 to 8",
        ),
        (
            "network",
            {"owners": [[*range(1, 16)], [], []], "n_stages": [[1] * 4] * 10**4},
            "n_stages has too many numbers",
        ),
        ("network", {"owners": [[*range(1, 16)], [], []], "in_channels": 10**6}, "dca.network.in_channels is 1000000"),
        ("patch", [4096, 4096, 4096], "dca.patch[0] is 4096, not a number from 16 to 512"),
        ("spacing_mm", [1e-6, 1e-6, 1e-6], "dca.spacing_mm[0] is 1e-06"),
        ("overlap", 0.9999999, "dca.overlap is 0.9999999"),
        ("spacing_mm", [1.0, 1.0, float("nan")], "cannot be read as JSON"),
        ("hu_window", [-1e300, 10**400], "cannot be read as JSON"),
        ("hu_window", [-1e300, 10**39], "dca.hu_window[0] is -1e+300"),
        ("hu_window", [-160.0, True], "dca.hu_window[1] is True, not a number"),
        ("weights", {**DESCRIBED, "bytes": 10**12}, "not a possible size"),
        ("weights", {**DESCRIBED, "bytes": 10**8}, "more than this"),
        ("weights", {**DESCRIBED, "sha256": "?"}, "not a SHA-256"),
        ("weights", {**DESCRIBED, "dtype": "object"}, "not float16 or float32"),
        ("vocabulary", {"name": "BTCV", "organs": []}, "vocabulary 'BTCV', which this program does not support"),
        ("vocabulary", {"name": "AMOS", "organs": []}, "numbers the organs of AMOS differently"),
    ],
)
def test_impossible_metadata_are_refused(folder, key, value, message):
    change_metadata(folder, lambda content: content["dca"].update({key: value}))

    assert message in complaint(folder)


@pytest.mark.parametrize("fusion", ["dfam", "average", "concat", "none"])
@pytest.mark.parametrize("options", [{"n_filters": 1}, {}, {"n_filters": 32}, {"n_stages": [[1] * 4] * 3}])
def test_the_bound_on_the_weight_file_allows_every_network(tmp_path, fusion, options):
    """With float32 weights, the largest that a bundle may have."""
    with torch.device("meta"):
        network = DCANet(metadata().partition.owners, fusion=fusion, **options)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    header = 200 * len(network.state_dict())
    assert size + header < compute_max_weight_bytes(network.options) < 4 * size + (4 << 20)


def test_a_weight_file_outside_of_the_bundle_is_refused(folder):
    change_metadata(folder, lambda content: content["dca"]["weights"].update(file="../other/model.safetensors"))

    assert "dca.weights.file is '../other/model.safetensors'" in complaint(folder)


def test_a_newer_format_is_refused_before_anything_else_is_read(folder):
    def newer(content):
        content["dca"] = {"format": 2, "weights_of_the_future": []}

    change_metadata(folder, newer)

    assert "has bundle format 2; this program reads format 1" in complaint(folder)


def test_metadata_that_are_not_json_are_refused(folder):
    (folder / METADATA).write_text("{")

    assert "cannot be read as JSON" in complaint(folder)


def test_a_monai_bundle_of_another_program_is_refused(folder):
    change_metadata(folder, lambda content: content.pop("dca"))

    assert "is a MONAI bundle of another program" in complaint(folder)


def test_missing_weights_are_refused(folder):
    (folder / WEIGHTS).unlink()

    assert "has no models/model.safetensors" in complaint(folder)


def test_paths_that_are_not_bundle_folders_are_refused(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.zip").write_bytes(b"PK\x05\x06" + bytes(18))

    assert "There is no model bundle" in complaint(tmp_path / "nowhere")
    assert "is not a model bundle: it has no configs/metadata.json" in complaint(tmp_path / "empty")
    assert "is a zip file" in complaint(tmp_path / "model.zip")
    assert "is a file, not a model bundle" in complaint(folder / WEIGHTS)


def test_every_refusal_is_an_error_shown_to_the_user(folder):
    (folder / WEIGHTS).unlink()

    with pytest.raises(UserError):
        Bundle.load(folder)


@pytest.mark.parametrize(
    ("labeled", "unlabeled", "words"),
    [
        (24, 8, "24 labeled and 8 unlabeled cases"),
        (1, 0, "1 labeled case"),
        (0, 3, "3 unlabeled cases"),
        (0, 0, "no cases"),
    ],
)
def test_training_data_count_their_cases_in_words(labeled, unlabeled, words):
    assert TrainingData("CTs", labeled, unlabeled, "CC BY 4.0").counts == words


def test_the_facts_as_json_have_every_source_of_the_training_data(dca):
    shown = dca("bundle", "info", "dca-abdomen").out.count("Training data")
    facts = json.loads(dca("--json", "bundle", "info", "dca-abdomen").out)
    assert shown == len(facts["Training data"]) > 1
    verified = json.loads(dca("--json", "bundle", "verify", "dca-abdomen").out)
    assert verified["checks"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, PermissionError])
def test_the_old_bundle_stays_if_its_replacement_is_interrupted(error, tmp_path, monkeypatch):
    folder = save_bundle(tmp_path / "model", small_network(), metadata()).folder
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        if "before" in target.name:
            raise error
        return renamed

    monkeypatch.setattr(bundles, "exchange", lambda one, other: False)
    with (
        pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else OutputError),
        replacing(folder) as (new, _),
    ):
        save_bundle(new, small_network(), replace(metadata(), name="new"), overwrite=True)
        monkeypatch.setattr(Path, "rename", interrupted)
    assert Bundle.load(folder).metadata.name == metadata().name
    assert [Bundle.load(each).metadata.name for each in tmp_path.glob("model-new-*")] == ["new"]
