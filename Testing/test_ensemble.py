"""Networks that segment together: the ensemble, its bundle, and the exported state of its training run."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.errors import UserError
from dcaseg.method import streaming
from dcaseg.method.ensemble import EnsembleNet, create_network
from dcaseg.method.network import DCANet
from dcaseg.method.streaming import RequestedOutputs
from dcaseg.models.bundle import Bundle
from dcaseg.training.checkpoints import load_checkpoint
from dcaseg.training.compact_state import Detail, read_compact, write_compact
from dcaseg.training.export import build_trained_network, export_bundle
from dcaseg.training.run_folder import CHECKPOINT
from dcaseg.types import StrategyName
from strategy_samples import randomize
from test_strategies import mostly_slow, options_for, trainer_for

PLAIN = {"owners": [[1, 2, 3]], "n_filters": 2, "norm": "instance", "n_stages": [[3, 3, 2, 1]],
         "dilations": [[1, 1, 1, 1]], "aggregation": False}  # fmt: skip


def two_networks() -> list[DCANet]:
    networks = [DCANet(**PLAIN).eval() for _ in range(2)]
    for seed, network in enumerate(networks):
        randomize(network, seed)
    return networks


@pytest.mark.parametrize("mean_of", ["logits", "probabilities"])
def test_an_ensemble_returns_the_mean_of_its_members(mean_of):
    networks, volume = two_networks(), torch.rand(1, 1, 16, 16, 32)
    ensemble = EnsembleNet.from_networks(networks, mean_of).eval()
    assert ensemble.options == {**networks[0].options, "members": 2, "mean_of": mean_of}
    with torch.no_grad():
        logits = [network(volume) for network in networks]
        assert not torch.allclose(*logits, atol=0.1)
        found = ensemble(volume)
        if mean_of == "logits":
            torch.testing.assert_close(found, (logits[0] + logits[1]) / 2)
        expected = [each.softmax(1) for each in logits] if mean_of == "probabilities" else logits
        torch.testing.assert_close(
            found.softmax(1) if mean_of == "probabilities" else found, (expected[0] + expected[1]) / 2
        )
        streamed = streaming.forward(ensemble, volume, RequestedOutputs(aggregated=True, stitched=True))
    for output in (streamed.aggregated, streamed.stitched):
        torch.testing.assert_close(output, found, atol=1e-4, rtol=1e-4)
    assert not ensemble.copy_without_weights().has_weights and isinstance(create_network(ensemble.options), EnsembleNet)
    assert type(create_network(PLAIN)) is DCANet


def test_impossible_ensembles_are_rejected():
    with pytest.raises(ValueError, match="two members"):
        EnsembleNet(1, **PLAIN)
    with pytest.raises(ValueError, match="aggregation decoder"):
        EnsembleNet(2, **{**PLAIN, "aggregation": True})


def test_the_exported_state_of_two_networks_has_both_averages(tmp_path):
    trainer = trainer_for(tmp_path / "run", options_for("cps", steps=4, ema_decay=0.9))
    for _ in range(2):
        trainer._advance()
    state = trainer._make_state()
    assert all(key.startswith(("networks.0.", "networks.1.")) for key in state["averaged"])
    whole, small = tmp_path / "whole.npz", tmp_path / "small.npz"
    write_compact(whole, state)
    found, _ = read_compact(whole)
    assert found["averaged"].keys() == state["averaged"].keys()
    for key, value in state["averaged"].items():
        torch.testing.assert_close(found["averaged"][key], value, atol=2e-3, rtol=2e-2)
    # If only one set of weights fits, it is the average of both networks.
    sizes = [
        write_compact(small, state, limit_bytes=limit)
        for limit in (whole.stat().st_size // divisor for divisor in (1, 2))
    ]
    assert all(isinstance(size, Detail) for size in sizes)
    found, _ = read_compact(small)
    if not sizes[-1].average:
        second = state["averaged"]["networks.1.encoder.blocks.0.0.weight"]
        torch.testing.assert_close(found["strategy"]["second.encoder.blocks.0.0.weight"], second, atol=0.05, rtol=0.1)
    resumed = trainer_for(tmp_path / "resumed", options_for("cps", steps=4, ema_decay=0.9))
    resumed.folder.mkdir()
    resumed.resume(whole)
    assert resumed.step == 2
    resumed._advance()


@pytest.mark.parametrize("name", mostly_slow(*get_args(StrategyName)))
@torch.inference_mode()
def test_every_strategy_exports_the_network_that_it_validates(tmp_path, name):
    trainer = trainer_for(tmp_path, options_for(name, steps=4))
    exported = build_trained_network(trainer.options, trainer.partition, trainer._make_state()).eval()
    rebuilt = create_network(exported.options).eval()
    rebuilt.load_state_dict(exported.state_dict())
    volume = torch.rand(1, 1, *trainer.options.patch)
    expected = trainer.evaluated_network.eval()(volume)
    torch.testing.assert_close(rebuilt(volume).softmax(dim=1), expected.softmax(dim=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cps", "co_bionet", "vnet", "plain_experts", "skcdf"])
def test_a_run_of_another_method_becomes_a_bundle_that_segments(dca, tmp_path, name):
    run, model, out = tmp_path / "run", tmp_path / "model", tmp_path / "out"
    trained = dca(
        "train", "-o", run, "--strategy", name, "--labelled", 1, "--unlabelled", 1, "--validation", 0, "--steps", 2,
        "--filters", 1, "--patch", 32, "--spacing", "14,14,14", "--device", "cpu",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert f"dca bundle export {run} -o BUNDLE" in " ".join(trained.out.split())
    assert "group has" not in trained.err, "only DCA has an expert for each group"
    exported = dca("bundle", "export", run, "-o", model)
    assert exported.code == 0, exported.err
    bundle = Bundle.load(model)
    network = bundle.network()
    state = load_checkpoint(run / CHECKPOINT)
    assert isinstance(network, EnsembleNet) == (name in ("cps", "co_bionet"))
    if isinstance(network, EnsembleNet):
        for index, key in enumerate(("encoder.blocks.0.0.weight", "others.0.encoder.blocks.0.0.weight")):
            expected = state["averaged"][f"networks.{index}.encoder.blocks.0.0.weight"]
            torch.testing.assert_close(network.state_dict()[key], expected, atol=1e-3, rtol=1e-3)
        config = json.loads((model / "configs" / "inference.json").read_text())
        assert config["network_def"]["_target_"] == "dcaseg.method.ensemble.EnsembleNet"
        assert "2 networks" in bundle.metadata.description
    assert f"--strategy {name}" in bundle.metadata.description and "review findings" in bundle.metadata.limits[1]
    assert dca("bundle", "verify", model).code == 0
    volume = np.random.default_rng(0).integers(-200, 200, (30, 40, 40)).astype(np.int16)
    image = sitk.GetImageFromArray(volume)
    image.SetSpacing((7.0, 7.0, 7.0))
    sitk.WriteImage(image, str(tmp_path / "ct.nii.gz"))
    segmented = dca("segment", tmp_path / "ct.nii.gz", "-o", out, "--bundle", model, "--device", "cpu")
    assert segmented.code == 0, segmented.err
    again = dca("train", "-o", tmp_path / "other", "--strategy", name, "--init", model, "--labelled", 1, "--unlabelled",
                1, "--validation", 0, "--steps", 1, "--device", "cpu", "--filters", 1, "--patch", 32, "--spacing",
                "14,14,14")  # fmt: skip
    assert again.code == 0, again.err


def test_export_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError):
        export_bundle(tmp_path, tmp_path / "model")
