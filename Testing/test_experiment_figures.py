"""The paper's figures from runs: their numbers are correct, and all of them are drawn and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dcaseg.errors import UserError
from dcaseg.evaluation.experiments.definitions import BASELINES, FUSIONS, STITCHED, make_expert_variant
from dcaseg.evaluation.experiments.figures import Also, make_figure
from dcaseg.evaluation.experiments.runs import SCORES, SETTINGS, Data, Runs
from dcaseg.evaluation.features import (
    extract_feature_volume,
    extract_features,
    get_last_block,
    get_last_fusion,
    sample_balanced_voxels,
)
from dcaseg.evaluation.figures.features import compute_contrast, embed
from dcaseg.evaluation.figures.overlays import Slice, find_fullest_slices
from dcaseg.evaluation.label_ratios import (
    Subset,
    count_moved_organs,
    kendall_tau,
    make_nested_subsets,
    measure_stability,
)
from dcaseg.method.log_gap import partition
from dcaseg.method.network import DCANet
from dcaseg.training.cases import Case
from test_training import OPTIONS, THREE_BALLS, case_of_balls

COMMON = replace(OPTIONS, steps=1, aggregation_start="as_is")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    labeled, hidden = [case_of_balls(1), case_of_balls(2)], case_of_balls(3)
    data = Data(
        THREE_BALLS, labeled, [case_of_balls(3, labeled=False)], [], [case_of_balls(5)], [*labeled, hidden], "balls"
    )
    return Runs(tmp_path_factory.mktemp("figures"), COMMON, data, [0])


def numbers_of(runs: Runs, name: str) -> dict:
    assert make_figure(name, runs).read_bytes().startswith(b"\x89PNG")
    return json.loads((runs.folder / f"{name}.json").read_text())


@pytest.mark.slow
def test_organ_dice_come_from_the_runs_and_later_figures_reuse_them(runs):
    numbers = numbers_of(runs, "fig1")
    shares = list(numbers["share_of_voxels"].values())
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-4)
    assert list(numbers["dice"]) == [arm.title for arm in BASELINES]
    scores = runs.folder / "runs" / "dca" / "seed-0" / SCORES
    dice = json.loads(scores.read_text())["cases"]["balls 5"]["dice"]
    assert list(numbers["dice"]["DCA"].values()) == pytest.approx(dice, abs=1e-4)

    written = scores.stat().st_mtime_ns
    overlays = numbers_of(runs, "fig5")
    assert list(overlays["dice"]) == ["V-Net, labeled part", "UA-MT", "CPS", "DCA"]
    assert overlays["dice"]["DCA"]["balls 5"] == pytest.approx(np.mean(dice), abs=1e-4)
    pytest.importorskip("sklearn")
    clusters = numbers_of(runs, "fig6")
    assert clusters["voxels"] == 3 * 80 and all(-1 <= one <= 1 for one in clusters["silhouette"].values())
    assert scores.stat().st_mtime_ns == written


@pytest.mark.slow
def test_expert_variants_and_fusions_are_run_and_drawn(runs):
    variants = numbers_of(runs, "fig7")
    assert set(variants["dice"]) == {"head", "medium", "tail"} and len(variants["dice"]["head"]) == 6
    fused = numbers_of(runs, "fig8")
    assert list(fused["contrast"]) == [arm.title for arm in FUSIONS]
    assert all(value > 0 for one in fused["contrast"].values() for value in one.values())


def test_figure_2_ranks_subsets_without_any_run(runs):
    numbers = numbers_of(runs, "fig2")
    assert [len(subset["cases"]) for subset in numbers["subsets"]] == [1, 1, 1, 3]
    assert numbers["subsets"][-1]["kendall_tau"] == 1 and numbers["subsets"][-1]["ranking"][0] == "large"
    assert {row["mode"] for row in numbers["random_subsets"]} == {"sequential", "top2"}
    make_figure("fig2", runs, Also((Subset("one", runs.data.labeled[:1]), Subset("two", runs.data.labeled))))
    assert [each["title"] for each in json.loads((runs.folder / "fig2.json").read_text())["subsets"]] == ["one", "two"]


def test_an_unknown_figure_is_rejected(runs):
    with pytest.raises(UserError, match="Unknown figure: 'fig9'"):
        make_figure("fig9", runs)


def test_a_variant_has_one_decoder_for_all_experts_and_the_stitched_ones_are_the_papers():
    options = make_expert_variant("deep", 2).make_options(COMMON, seed=3)
    assert options.n_stages == ((4, 4, 3, 2),) * 3 and options.dilations == ((2,) * 4,) * 3
    assert not options.aggregation and options.seed == 3
    assert (
        not STITCHED.make_options(COMMON, 0).aggregation
        and STITCHED.make_options(COMMON, 0).n_stages == COMMON.n_stages
    )


def test_settings_written_before_an_option_existed_are_still_the_same(tmp_path, runs):
    content = json.loads((runs.folder / SETTINGS).read_text())
    del content["options"]["grid"]["shape"], content["options"]["grid"]["scaling"]
    (tmp_path / SETTINGS).write_text(json.dumps(content))
    assert Runs(tmp_path, COMMON, runs.data, [0]).folder == tmp_path
    with pytest.raises(UserError, match="other settings"):
        Runs(tmp_path, replace(COMMON, n_filters=3), runs.data, [0])
    unlimited = replace(COMMON, grad_clip_norm=float("inf"))
    for _ in range(2):
        Runs(tmp_path / "paper", unlimited, runs.data, [0])


def test_kendalls_tau_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(0)
    for _ in range(5):
        one, other = generator.permutation(9).tolist(), generator.permutation(9).tolist()
        expected = stats.kendalltau([one.index(item) for item in range(9)], [other.index(item) for item in range(9)])
        assert kendall_tau(one, other) == pytest.approx(expected.statistic)
    assert kendall_tau([1, 2, 3], [3, 2, 1]) == -1 and kendall_tau([7], [7]) == 1
    with pytest.raises(ValueError, match="different items"):
        kendall_tau([1, 2], [1, 3])


def test_moved_organs_are_those_in_another_group():
    one = partition({1: 1000, 2: 100, 3: 90, 4: 1}, "top2")
    other = partition({1: 1000, 2: 900, 3: 90, 4: 1}, "top2")
    assert one.owners == ((1,), (2, 3), (4,)) and other.owners == ((1, 2), (3,), (4,))
    assert count_moved_organs(one, other) == 1 and count_moved_organs(one, one) == 0


def test_subsets_are_the_first_cases_and_all_cases_are_stable():
    cases = [case_of_balls(seed) for seed in range(5)]
    assert [len(subset.cases) for subset in make_nested_subsets(cases, (10, 40, 100))] == [1, 2, 5]
    whole = measure_stability(cases, THREE_BALLS, 5, "top2", draws=3)
    assert (whole.tau, whole.same_groups, whole.moved) == (1, 1, 0)


def test_features_come_from_the_layer_before_the_head():
    torch.manual_seed(0)
    network = DCANet(((1,), (2,), (3,)), n_filters=2, norm="instance").train()
    case = Case("one patch", np.random.default_rng(0).integers(-100, 200, OPTIONS.patch).astype(np.int16), None)
    found = extract_feature_volume(network, get_last_block(network), case, OPTIONS)
    assert found.shape == (2, *OPTIONS.patch) and network.training
    assert network.aggregation is not None
    network.eval()
    with torch.no_grad():
        logits = network.aggregation.head(torch.from_numpy(found)[None])
        expected = network(torch.from_numpy(case.scale_intensity(case.hu, OPTIONS.grid))[None, None])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    fused = extract_feature_volume(network, get_last_fusion(network), case, OPTIONS)
    assert fused.shape == found.shape and not np.allclose(fused, found)
    stitched = DCANet(((1,), (2,), (3,)), n_filters=2, norm="instance", aggregation=False)
    with pytest.raises(ValueError, match="do not share a last block"):
        get_last_block(stitched)


def test_sampled_voxels_are_balanced_and_inside_their_organ():
    cases = [case_of_balls(1), case_of_balls(2)]
    voxels = sample_balanced_voxels(cases, 31)
    assert np.bincount(voxels.labels).tolist() == [0, 31, 31, 31]
    for position, index, label in zip(voxels.positions, voxels.cases, voxels.labels, strict=True):
        assert cases[index].labels[tuple(position)] == label  # type: ignore[index]
    network = DCANet(((1, 2, 3),), n_filters=2, norm="instance", n_stages=[(1,) * 4], dilations=[(1,) * 4],
                     aggregation=False)  # fmt: skip
    features = extract_features(network, get_last_block(network), cases, OPTIONS, voxels)
    whole = extract_feature_volume(network, get_last_block(network), cases[1], OPTIONS)
    row = int(np.flatnonzero(voxels.cases == 1)[0])
    assert features[row] == pytest.approx(whole[(slice(None), *voxels.positions[row])])


def test_separated_clusters_have_a_silhouette_near_one():
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    labels = np.repeat([1, 2, 3], 20)
    found = embed(100.0 * labels[:, None] * [1, -1] + generator.normal(size=(60, 2)), labels)
    assert found.silhouette > 0.9 and found.points.shape == (60, 2)
    assert abs(embed(generator.normal(size=(60, 2)), labels).silhouette) < 0.2


def test_contrast_is_the_ratio_of_organs_to_the_rest_of_the_body():
    labels = np.array([0, 0, 1, 1, 2, 0])
    hu = np.array([50, 50, 50, 50, 50, -1000])
    groups = {"head": (1,), "tail": (2,), "medium": (3,)}
    found = compute_contrast(np.array([1.0, 3.0, 4.0, 8.0, 1.0, 99.0]), hu, labels, groups)
    assert found == {"head": 3.0, "tail": 0.5}


def test_slices_show_the_patients_right_on_the_left_and_the_front_on_top():
    array = np.zeros((3, 4, 5))
    array[1, 3, 4], array[2, 0, 0] = 1, 2  # anterior and right; superior
    assert Slice("Axial", 0, 1, 1.0).extract(array)[0, 0] == 1
    assert Slice("Coronal", 1, 0, 1.0).extract(array)[0, -1] == 2
    hu = np.full((3, 9, 12), -1000)
    hu[1, 3:6, 4:10] = 40
    assert Slice("Axial", 0, 1, 1.0).crop_to_body(hu).extract(hu).shape == (3 + 4, 6 + 4)
    empty = Slice("Axial", 0, 0, 1.0)
    assert empty.crop_to_body(hu) == empty
    labels = np.zeros((5, 6, 7), int)
    labels[2, 1:3], labels[2, 4], labels[2, 4, :3], labels[4, 4] = 1, 2, 1, 2
    axial, coronal = find_fullest_slices(labels, (3.0, 1.0, 2.0))
    assert (axial.index, axial.aspect, coronal.index, coronal.aspect) == (2, 0.5, 4, 1.5)


@pytest.mark.slow
def test_the_command_draws_a_figure_on_phantoms(dca, tmp_path: Path):
    options = ("--people", "1,2,1,1", "--seeds", "0", "--steps", 1, "--filters", 1, "--spacing", "14,14,14")
    drawn = dca("experiment", "fig2", "-o", tmp_path, *options, "--ratios", "50,100", "--device", "cpu")
    assert drawn.code == 0, drawn.err
    assert "fig2.png" in drawn.out and (tmp_path / "fig2.png").exists()
    assert dca("experiment", "table4", "-o", tmp_path, "--also", "list.json").code == 2
    assert dca("experiment", "fig2", "-o", tmp_path, "--ratios", "0").code == 2


def test_the_command_compares_the_labeled_cases_of_several_lists(dca, coarse_phantom, tmp_path):
    files = {}
    for name in "abc":
        files[name] = {"image": str(tmp_path / f"{name}.nii.gz"), "label": str(tmp_path / f"{name}_labels.nii.gz")}
        Path(files[name]["image"]).symlink_to(coarse_phantom / "ct.nii.gz")
        Path(files[name]["label"]).symlink_to(coarse_phantom / "labels.nii.gz")
    few = {"name": "few", "training": [files["a"]], "unlabelled": [files["b"]], "test": [files["c"]]}
    more = {"name": "more", "training": [files["a"], files["b"]]}
    for content in (few, more):
        (tmp_path / f"{content['name']}.json").write_text(json.dumps(content))
    options = ("--spacing", "14,14,14", "--seeds", "0", "--device", "cpu")
    lists = ("--data", tmp_path / "few.json", "--also", tmp_path / "more.json")
    drawn = dca("experiment", "fig2", "-o", tmp_path / "out", *lists, *options)
    assert drawn.code == 0, drawn.err
    numbers = json.loads((tmp_path / "out" / "fig2.json").read_text())
    assert [(each["title"], len(each["cases"])) for each in numbers["subsets"]] == [("few\n(1)", 1), ("more\n(2)", 2)]
    assert numbers["subsets"][0]["kendall_tau"] == 1 and not (tmp_path / "out" / "runs").exists()
