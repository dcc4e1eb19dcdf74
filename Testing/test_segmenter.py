"""Segmentation of a CT into labels and maps, with a small random network."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.inferers import sliding_window_inference
from scipy.ndimage import gaussian_filter

from dcaseg.errors import Cancelled, ImageError, UserError
from dcaseg.imaging.grid import Grid, make_model_grid
from dcaseg.imaging.intensity import apply_window
from dcaseg.imaging.resampling import resample
from dcaseg.imaging.size_limits import MAX_VOXELS
from dcaseg.inference.segmenter import Segmenter, SegmentOptions
from small_model import PATCH, SmallModel, vivid_network

torch.set_num_threads(1)

FLIPPED = (1, 0, 0, 0, -1, 0, 0, 0, -1)
OBLIQUE = sitk.VersorRigid3DTransform((0.02, 0.13, 0.05, 0.99)).GetMatrix()
ALL_MAPS = SegmentOptions(
    overlap=0.25, attention_levels=(1, 4), dominant_expert=True, entropy=True, disagreement=True, batch=4
)


def noise_ct(size=(62, 58, 34), spacing=(3.1, 2.9, 4.7), direction=FLIPPED):
    """Smooth noise around 0 HU, int16, on an anisotropic grid."""
    noise = gaussian_filter(np.random.default_rng(4).normal(size=size[::-1]), 0.8)
    ct = sitk.GetImageFromArray((300 * noise / noise.std()).astype(np.int16))
    ct.SetSpacing(spacing)
    ct.SetOrigin((-31.0, 17.25, -404.0))
    ct.SetDirection(direction)
    return ct


@pytest.fixture(scope="module")
def ct():
    return noise_ct()


@pytest.fixture(scope="module")
def network():
    return vivid_network()


@pytest.fixture(scope="module")
def segmenter(network):
    return Segmenter(SmallModel(network), device="cpu")


@pytest.fixture(scope="module")
def with_maps(segmenter, ct):
    return segmenter.segment(ct, ALL_MAPS)


def whole_volume_probabilities(ct, predictor, overlap, average="logits"):
    """MONAI's sliding window over the whole model grid, and SimpleITK to bring every channel back to the CT's grid."""
    grid = make_model_grid(ct, (4.0, 4.0, 4.0), "RAS")
    volume = torch.from_numpy(apply_window(sitk.GetArrayFromImage(resample(ct, grid)), -160.0, 240.0))
    with torch.inference_mode():
        averaged = sliding_window_inference(
            volume[None, None],
            PATCH,
            1,
            predictor if average == "logits" else lambda windows: torch.softmax(predictor(windows), dim=1),
            overlap=overlap,
            mode="gaussian",
        )[0]
    probabilities = torch.softmax(averaged, dim=0) if average == "logits" else averaged
    return probabilities.numpy(), grid


def on_ct_grid(probabilities, grid, ct):
    return np.stack(
        [sitk.GetArrayFromImage(resample(grid.make_image(each), Grid.from_image(ct))) for each in probabilities]
    )


def assert_same_but_for_ties(labels, probabilities):
    best, second = np.sort(probabilities, axis=0)[[-1, -2]]
    differing = sitk.GetArrayViewFromImage(labels) != probabilities.argmax(axis=0)
    assert (best - second)[differing].max(initial=0) < 1e-4


@pytest.mark.parametrize("direction", [FLIPPED, OBLIQUE])
@pytest.mark.parametrize("pixel_type", [sitk.sitkInt16, sitk.sitkFloat32])
def test_labels_come_back_on_exactly_the_input_grid(segmenter, direction, pixel_type):
    ct = sitk.Cast(noise_ct(size=(30, 28, 20), direction=direction), pixel_type)
    labels = segmenter.segment(ct).labels
    assert Grid.from_image(labels) == Grid.from_image(ct)
    assert labels.GetPixelID() == sitk.sitkUInt8


@pytest.mark.slow
def test_the_default_overlap_is_the_models(network, ct):
    model = SmallModel(network)
    model.metadata.overlap = 0.7
    segmenter = Segmenter(model, device="cpu")
    own, other = segmenter.segment(ct).labels, segmenter.segment(ct, SegmentOptions(overlap=0.25)).labels
    assert sitk.Hash(own) == sitk.Hash(segmenter.segment(ct, SegmentOptions(overlap=0.7)).labels)
    assert sitk.Hash(own) != sitk.Hash(other)


@pytest.mark.parametrize("average", ["logits", "probabilities"])
def test_streaming_gives_the_labels_of_the_whole_volume(segmenter, network, ct, average):
    labels = segmenter.segment(ct, SegmentOptions(overlap=0.25, average=average, keep_islands=True)).labels
    probabilities, grid = whole_volume_probabilities(ct, network, 0.25, average)
    assert len(np.unique(sitk.GetArrayViewFromImage(labels))) == network.out_channels
    assert_same_but_for_ties(labels, on_ct_grid(probabilities, grid, ct))


def test_the_experts_output_is_their_stitched_prediction(segmenter, network, ct):
    labels = segmenter.segment(ct, SegmentOptions(overlap=0.25, output="experts", keep_islands=True)).labels
    probabilities, grid = whole_volume_probabilities(
        ct, lambda windows: network.stitch(network.forward_all(windows).experts), 0.25
    )
    assert_same_but_for_ties(labels, on_ct_grid(probabilities, grid, ct))


def test_maps_lie_on_the_model_grid_and_do_not_change_the_labels(segmenter, ct, with_maps):
    grid = make_model_grid(ct, (4.0, 4.0, 4.0), "RAS")
    maps = [with_maps.entropy, with_maps.disagreement]
    maps += [image for experts in with_maps.attention.values() for image in experts.values()]
    assert all(Grid.from_image(image) == grid for image in maps)
    plain = segmenter.segment(ct, SegmentOptions(overlap=0.25, batch=4))
    assert sitk.Hash(plain.labels) == sitk.Hash(with_maps.labels)
    assert (plain.attention, plain.dominant_expert, plain.entropy, plain.disagreement) == ({}, None, None, None)


def test_attention_of_every_level_sums_to_one_in_every_voxel(with_maps):
    assert list(with_maps.attention) == [1, 4]
    for experts in with_maps.attention.values():
        assert list(experts) == ["head", "medium", "tail"]
        arrays = np.stack([sitk.GetArrayFromImage(image) for image in experts.values()])
        # Each map is rounded to 16 bits.
        np.testing.assert_allclose(arrays.sum(axis=0), 1, atol=4e-5)
        assert arrays.std() > 0.01, "attention that is the same everywhere would prove nothing"


def test_attention_equals_monais_stitching_of_it(network, ct, with_maps):
    # The softmax of its logarithm is the attention itself.
    theirs, _ = whole_volume_probabilities(
        ct, lambda windows: network.forward_all(windows, (4,)).attention[4].log(), 0.25, "probabilities"
    )
    ours = np.stack([sitk.GetArrayFromImage(image) for image in with_maps.attention[4].values()])
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_dominant_expert_has_the_largest_attention(network, ct, with_maps):
    experts = with_maps.attention[4]
    finest = np.stack([sitk.GetArrayFromImage(image) for image in experts.values()])
    most = sitk.GetImageFromArray((finest.argmax(axis=0) + 1).astype(np.uint8))
    most.CopyInformation(next(iter(experts.values())))
    labels = sitk.GetArrayFromImage(with_maps.labels)
    decided = sitk.GetArrayFromImage(with_maps.dominant_expert)
    expected = sitk.GetArrayFromImage(resample(most, Grid.from_image(ct), "nearest"))
    inside = labels > 0
    # Voxels of the CT beyond the last one of the model have none in the resampled map.
    assert (decided[inside] == expected[inside]).mean() > 0.97


def test_the_expert_map_is_background_exactly_where_the_labels_are(segmenter, ct, with_maps):
    """Also where islands were removed, for instance on the table, and where organs were not requested."""
    assert Grid.from_image(with_maps.dominant_expert) == Grid.from_image(ct)
    few = segmenter.segment(ct, SegmentOptions(overlap=0.25, batch=4, dominant_expert=True, organs=("spleen",)))
    for result in (with_maps, few):
        labels, experts = (sitk.GetArrayFromImage(image) for image in (result.labels, result.dominant_expert))
        np.testing.assert_array_equal(labels > 0, experts > 0)
        assert (labels > 0).any() and experts.max() <= 3
    assert [each.organ.key for each in few.measurements] == ["spleen"] == list(few.volumes_ml)


def test_a_failing_review_does_not_discard_the_labels(segmenter, ct, monkeypatch):
    from dcaseg.review import builder as gathering

    def fail(*arguments):
        raise ZeroDivisionError("review")

    monkeypatch.setattr(gathering, "make_review", fail)
    result = segmenter.segment(ct, SegmentOptions(overlap=0.25, batch=4, review=True))
    assert result.review is None and sitk.GetArrayFromImage(result.labels).any()
    assert any("ZeroDivisionError" in warning for warning in result.warnings)


def test_entropy_and_disagreement_are_those_of_the_averaged_predictions(network, ct, with_maps):
    aggregated, _ = whole_volume_probabilities(ct, network, 0.25)
    stitched, _ = whole_volume_probabilities(
        ct, lambda windows: network.stitch(network.forward_all(windows).experts), 0.25
    )
    entropy = -(aggregated * np.log(aggregated + 1e-30)).sum(axis=0) / np.log(len(aggregated))
    np.testing.assert_allclose(sitk.GetArrayFromImage(with_maps.entropy), entropy, atol=1e-3)
    distance = np.abs(aggregated - stitched).sum(axis=0) / 2
    # The experts' logits, which are large in this network, are summed in float16.
    error = np.abs(sitk.GetArrayFromImage(with_maps.disagreement) - distance)
    assert error.max() < 0.01 and error.mean() < 5e-4


def test_volumes_and_mean_hu_are_those_of_the_labels(ct, with_maps):
    labels, hu = sitk.GetArrayFromImage(with_maps.labels), sitk.GetArrayFromImage(ct)
    spleen = with_maps.measurements[0]
    assert spleen.organ.key == "spleen"
    assert with_maps.volumes_ml["spleen"] == pytest.approx((labels == 1).sum() * 3.1 * 2.9 * 4.7 / 1000)
    assert spleen.mean_hu == pytest.approx(hu[labels == 1].mean())


def test_progress_runs_from_0_to_1_and_counts_the_windows(segmenter, ct):
    reports = []
    segmenter.segment(ct, progress=lambda fraction, message: reports.append((fraction, message)))
    fractions = [fraction for fraction, _ in reports]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    messages = [message for _, message in reports]
    assert messages[0] == "Resampling"
    windows = [message for message in messages if "window" in message]
    assert windows[0].startswith("Segmenting window 1 of ")
    total = windows[0].split()[-1]
    assert windows[-1] == f"Segmenting window {total} of {total}"
    assert "Finishing" in messages


def test_cancelling_stops_before_the_next_window(ct):
    windows_seen = []

    network = vivid_network()
    network.encoder.register_forward_pre_hook(lambda _, given: windows_seen.append(len(given[0])))
    segmenter = Segmenter(SmallModel(network), device="cpu")
    with pytest.raises(Cancelled):
        segmenter.segment(ct, SegmentOptions(batch=1), cancelled=lambda: len(windows_seen) >= 2)
    assert windows_seen == [1, 1]


def test_short_memory_is_a_warning_and_changes_no_label(segmenter, ct):
    def take_memory(_, given):
        if len(given[0]) > 1:
            raise RuntimeError("MPS backend out of memory")

    network = vivid_network()
    network.encoder.register_forward_pre_hook(take_memory)
    hungry = Segmenter(SmallModel(network), device="cpu")
    result = hungry.segment(ct, SegmentOptions(overlap=0.25, batch=3))
    assert any("continuing with 1" in warning for warning in result.warnings)
    assert sitk.Hash(result.labels) == sitk.Hash(segmenter.segment(ct, SegmentOptions(overlap=0.25)).labels)


def test_the_limit_on_voxels_applies_at_the_spacing_of_the_model(segmenter, monkeypatch):
    ct = noise_ct(size=(20, 20, 20), spacing=(12.0, 12.0, 16.0))
    monkeypatch.setenv(MAX_VOXELS, "100_000")
    with pytest.raises(ImageError, match="spacing of 4 x 4 x 4 mm, has 58 x 58 x 77 voxels, more than the") as caught:
        segmenter.segment(ct)
    assert "Check the spacing of the CT, 12 x 12 x 16 mm." in caught.value.remedy
    assert f"{MAX_VOXELS} to at least {58 * 58 * 77}" in caught.value.remedy


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_an_error_and_not_an_empty_result(segmenter, value):
    ct = sitk.Cast(noise_ct(size=(40, 40, 40)), sitk.sitkFloat32)
    ct[20, 20, 20] = value
    with pytest.raises(ImageError, match="no numbers"):
        segmenter.segment(ct)


def test_a_scan_smaller_than_a_window_is_padded_with_a_warning(segmenter):
    result = segmenter.segment(noise_ct(size=(12, 40, 9)))
    assert result.labels.GetSize() == (12, 40, 9)
    assert any("It was padded" in warning for warning in result.warnings)


def test_chosen_organs_are_the_only_labels(segmenter, ct):
    result = segmenter.segment(ct, SegmentOptions(overlap=0.0, organs=("left_kidney", "spleen")))
    assert set(np.unique(sitk.GetArrayViewFromImage(result.labels))) == {0, 1, 3}


def test_an_unknown_organ_is_refused_and_a_similar_one_named(segmenter, ct):
    with pytest.raises(UserError, match="left_kidnee") as caught:
        segmenter.segment(ct, SegmentOptions(organs=("left_kidnee",)))
    assert "Did you mean 'left_kidney'?" in caught.value.remedy


@pytest.mark.parametrize("fusion", ["concat", "none"])
def test_attention_of_a_network_that_has_none_is_refused(ct, fusion):
    segmenter = Segmenter(SmallModel(vivid_network(fusion=fusion)), device="cpu")
    with pytest.raises(UserError, match=rf"has no dominant expert, because its fusion \({fusion}\) has no weights"):
        segmenter.segment(ct, SegmentOptions(dominant_expert=True))


def test_a_network_of_experts_alone_has_no_disagreement(ct):
    segmenter = Segmenter(SmallModel(vivid_network(aggregation=False)), device="cpu")
    with pytest.raises(UserError, match="no disagreement, because it has no aggregation decoder"):
        segmenter.segment(ct, SegmentOptions(disagreement=True))
    assert segmenter.segment(noise_ct(size=(20, 20, 20)), SegmentOptions(entropy=True)).entropy is not None


@pytest.mark.parametrize(
    "wrong",
    [
        {"overlap": 1.0},
        {"batch": 0},
        {"weighting": "triangle"},
        {"output": "oracle"},
        {"average": "median"},
        {"attention_levels": (5,)},
        {"organs": ()},
    ],
    ids=str,
)
def test_invalid_options_are_refused(wrong):
    with pytest.raises(UserError) as caught:
        SegmentOptions(**wrong)
    assert caught.value.remedy
