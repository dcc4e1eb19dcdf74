"""Models without DCA's aggregation decoder: the commands, the worker, the Python API and the panel work with them."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch

import dcaseg
from dcaseg.errors import UserError
from dcaseg.inference.options import SegmentOptions, drop_unavailable_maps
from dcaseg.method import streaming
from dcaseg.method.channel_attention import AttendingNet
from dcaseg.method.ensemble import EnsembleNet, create_network
from dcaseg.method.network import DCANet
from dcaseg.method.streaming import RequestedOutputs
from dcaseg.method.variants import VNET_N_STAGES
from dcaseg.models.bundle import Bundle
from dcaseg.organs import AMOS
from small_model import PATCH, save_small_bundle, vivid_network

LABELS = list(range(1, len(AMOS) + 1))
PLAIN = {"owners": [LABELS], "n_filters": 2, "norm": "instance", "n_stages": [VNET_N_STAGES],
         "dilations": [(1, 1, 1, 1)], "aggregation": False}  # fmt: skip
KINDS = ("vnet", "ensemble", "stitched", "averaged", "attending")
NOTE = "This model has no attention, dominant expert or disagreement, because it has no aggregation decoder"


def network_for(kind: str) -> DCANet:
    torch.manual_seed(5)
    if kind == "stitched":
        return vivid_network(len(AMOS), aggregation=False)
    if kind == "averaged":
        return vivid_network(len(AMOS), aggregation=False, stitching="average")
    if kind == "ensemble":
        return EnsembleNet(2, "probabilities", **PLAIN).eval()
    return (AttendingNet(PATCH, **PLAIN) if kind == "attending" else DCANet(**PLAIN)).eval()


@pytest.fixture(scope="module", params=KINDS)
def plain(request, tmp_path_factory):
    """A bundle of each kind."""
    return save_small_bundle(tmp_path_factory.mktemp("plain") / request.param, network_for(request.param))


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A bundle of two networks."""
    return save_small_bundle(tmp_path_factory.mktemp("pair") / "pair", network_for("ensemble"))


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_loaded_network_gives_the_same_logits_in_both_passes(kind, tmp_path):
    # A bundle stores weights in half precision.
    network = network_for(kind).half().float()
    volume = torch.rand(1, 1, *PATCH)
    loaded = Bundle.load(save_small_bundle(tmp_path / kind, network)).network()
    assert type(loaded) is type(network) and type(loaded.copy_without_weights()) is type(network)
    torch.testing.assert_close(loaded(volume), network(volume))
    streamed = streaming.forward(loaded, volume, RequestedOutputs())
    assert streamed.aggregated is not None
    torch.testing.assert_close(streamed.aggregated.softmax(dim=1), loaded(volume).softmax(dim=1), rtol=1e-3, atol=1e-4)


@torch.inference_mode()
def test_averaged_experts_are_the_mean_of_all_logits():
    network = network_for("averaged")
    output = network.forward_all(torch.rand(1, 1, *PATCH))
    torch.testing.assert_close(output.aggregated, torch.stack(output.experts).mean(dim=0))


@torch.inference_mode()
def test_channel_attention_takes_part_in_inference():
    network, volume = network_for("attending"), torch.rand(1, 1, *PATCH)
    before = network(volume)
    for parameter in network.attention.parameters():
        parameter.add_(0.5)
    assert not torch.allclose(network(volume), before, atol=1e-3)


def test_impossible_networks_with_channel_attention_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="aggregation decoder"):
        AttendingNet(PATCH, **{**PLAIN, "aggregation": True})
    with pytest.raises(ValueError, match="multiples of 16"):
        AttendingNet((32, 32, 40), **PLAIN)
    folder = save_small_bundle(tmp_path / "bundle", network_for("attending"))
    content = json.loads((folder / "configs" / "metadata.json").read_text())
    content["dca"]["network"]["attended_patch"] = [32, 32, 48]
    (folder / "configs" / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="attended_patch is not the model's patch"):
        Bundle.load(folder)
    assert isinstance(create_network(network_for("attending").options), AttendingNet)


def test_only_the_maps_that_a_network_lacks_are_left_out():
    everything = SegmentOptions(attention_levels=(1, 4), dominant_expert=True, entropy=True, disagreement=True)
    assert drop_unavailable_maps(everything, vivid_network().options) == (everything, "")
    options, note = drop_unavailable_maps(everything, vivid_network(fusion="concat").options)
    assert options == SegmentOptions(entropy=True, disagreement=True)
    assert note.startswith("This model has no attention or dominant expert, because its fusion (concat) has no weights")
    options, note = drop_unavailable_maps(everything, PLAIN)
    assert options == SegmentOptions(entropy=True)
    assert note == f"{NOTE}: these maps are left out."
    assert drop_unavailable_maps(SegmentOptions(review=True), PLAIN) == (SegmentOptions(review=True), "")


@pytest.mark.slow
def test_the_command_leaves_maps_out_with_one_note(dca, plain, coarse_phantom, tmp_path):
    out = tmp_path / "out"
    # Rendering takes most of the time.
    is_drawn = plain.name == "ensemble"
    run = dca("segment", coarse_phantom / "ct.nii.gz", "-o", out, "--bundle", plain, "--device", "cpu", "--backend",
              "eager", "--review", "--picture" if is_drawn else "--no-scene")  # fmt: skip
    assert run.code == 0, run.err
    assert " ".join(run.err.split()).count(NOTE) == 1
    names = {path.name for path in out.iterdir()}
    assert {"labels.nrrd", "entropy.nrrd", "review.json", "volumes.csv"} <= names
    assert not is_drawn or {"picture.png", "scene.mrb"} <= names or find_spec("slicer") is None
    assert not {name for name in names if name.startswith(("attention", "dominant", "disagreement", "expert"))}
    assert json.loads((out / "request.json").read_text())["options"]["attention_levels"] == []
    kinds = {reason["kind"] for each in json.loads((out / "review.json").read_text())["places"]
             for reason in each["reasons"]}  # fmt: skip
    assert not kinds & {"disagreement", "foreign_expert", "undecided"}


def test_a_map_requested_by_name_is_refused(dca, pair, coarse_phantom, tmp_path):
    run = dca("segment", coarse_phantom / "ct.nii.gz", "-o", tmp_path / "out", "--bundle", pair, "--device", "cpu",
              "--attention-levels", "4")  # fmt: skip
    assert run.code == 2 and "This model has no attention, because it has no aggregation decoder." in run.err
    assert not (tmp_path / "out").exists()
    model = dcaseg.Segmenter(pair, device="cpu", backend="eager")
    with pytest.raises(UserError, match="has no dominant expert"):
        model.segment(coarse_phantom / "ct.nii.gz", maps=False, dominant_expert=True)


def test_the_python_api_leaves_maps_out_with_a_warning(pair, coarse_phantom):
    result = dcaseg.segment(coarse_phantom / "ct.nii.gz", model=pair, device="cpu", backend="eager", review=True)
    assert result.warnings[0].startswith(NOTE)
    assert result.uncertainty is not None and result.review is not None
    assert result.attention == {} and result.dominant_expert is None


def test_other_commands_take_such_a_model(dca, pair, coarse_phantom, tmp_path):
    ct, labels = coarse_phantom / "ct.nii.gz", coarse_phantom / "labels.nii.gz"
    scored = dca("evaluate", "--bundle", pair, "--ct", ct, "--labels", labels, "--device", "cpu")
    assert scored.code == 0 and "Mean of all organs" in scored.out
    refused = dca("evaluate", "--bundle", pair, "--ct", ct, "--labels", labels, "--device", "cpu", "--attention")
    assert refused.code == 2 and "no attention" in refused.err
    described = dca("bundle", "info", pair)
    assert "Head organs" in described.out and "Head expert" not in described.out
    card = (pair / "docs" / "README.md").read_text()
    assert (
        "They are used only to group the scores." in card
        and "expert" not in card.partition("## Organs")[2].partition("##")[0]
    )


@pytest.mark.slow
def test_a_cohort_takes_such_a_model(dca, pair, coarse_phantom, tmp_path):
    (tmp_path / "archive").mkdir()
    (tmp_path / "archive" / "ct.nii.gz").write_bytes((coarse_phantom / "ct.nii.gz").read_bytes())
    cohort = dca("cohort", tmp_path / "archive", "-o", tmp_path / "cohort", "--bundle", pair, "--device", "cpu",
                 "--workers", 1)  # fmt: skip
    assert cohort.code == 0 and NOTE not in cohort.err, cohort.err


@pytest.fixture
def only_pair(pair, monkeypatch, tmp_path):
    monkeypatch.setenv("DCA_MODELS", str(pair))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def panel(only_pair, warm_worker, module_panel):
    return module_panel


@pytest.mark.scene
def test_the_panel_shows_the_uncertainty_of_such_a_model(fake_slicer, panel):
    from module_driving import add_ct, apply, message, segmentations, wait_for_end

    panel.parameters.inputVolume = add_ct("CT")
    apply(panel)
    wait_for_end(panel, fake_slicer)
    assert len(segmentations()) == 1 and NOTE in message(panel)
    panel.ui.expertsSection.collapsed = False
    fake_slicer.process_events(0.5)
    experts = panel.expertsPanel
    offered = [experts.ui.mapSelector.itemData(index) for index in range(experts.ui.mapSelector.count)]
    assert offered == ["none", "uncertainty"]
    assert experts.ui.expertsHintLabel.visible
    assert experts.ui.expertsHintLabel.text == "This result has no attention maps."
    experts.ui.mapSelector.currentIndex = 1
    experts.ui.mapSelector.activated.emit(1)
    fake_slicer.process_events(0.2)
    assert experts.choice == "uncertainty" and not experts.ui.compareButton.enabled
