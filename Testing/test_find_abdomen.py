"""Long scans: a coarse pass finds the abdomen, and only the planes around it are segmented."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.imaging.grid import Grid, make_model_grid
from dcaseg.inference.region import ABDOMEN_MARGIN_MM, extend_planes, find_abdominal_planes
from dcaseg.inference.segmenter import Segmenter, SegmentOptions
from dcaseg.models.bundle import Bundle
from dcaseg.organs import AMOS
from dcaseg.synthesis.phantom.case import generate
from small_model import SmallModel, vivid_network

SHIPPED = Path(__file__).parents[1] / "DCASegmentation/dcaseg/models/shipped" / "dca-abdomen"
LEGS_MM = 720.0


@pytest.fixture(scope="module")
def phantom():
    return generate(17, (6.0, 6.0, 6.0))


@pytest.fixture(scope="module")
def long_ct(phantom):
    """The phantom's CT, and legs below it: two cylinders of muscle, bone and fat."""
    more = round(LEGS_MM / phantom.ct.GetSpacing()[2])
    ct = sitk.ConstantPad(phantom.ct, [0, 0, more], [0, 0, 0], -1000)
    array = sitk.GetArrayFromImage(ct)
    y, x = np.indices(array.shape[1:]) * 6.0
    for side in (0.33, 0.67):
        distance = np.hypot(x - side * x.max(), y - 0.5 * y.max())
        for radius_mm, hu in ((72, -100), (60, 55), (16, 700), (8, -50)):
            array[:more, distance < radius_mm] = hu
    legs = sitk.GetImageFromArray(array)
    legs.CopyInformation(ct)
    return legs


def planes_of(grid: Grid, image: sitk.Image) -> tuple[int, int]:
    """First and last plane of ``grid`` that a labeled voxel of ``image`` lies in."""
    z, y, x = np.nonzero(sitk.GetArrayViewFromImage(image))
    points = [image.TransformIndexToPhysicalPoint([int(i) for i in voxel]) for voxel in zip(x, y, z, strict=True)]
    along = (np.array(points) - grid.origin) @ grid.axes[:, 2] / grid.spacing[2]
    return int(np.floor(along.min())), int(np.ceil(along.max()))


@pytest.mark.parametrize("tilted", [False, True])
def test_the_planes_contain_all_organs_and_the_margin(tilted):
    array = np.zeros((40, 20, 20), np.uint8)
    array[12:20, 5:11, 6:14] = AMOS.by_key["left_kidney"].label
    labels = sitk.GetImageFromArray(array)
    labels.SetSpacing((4.0, 4.0, 5.0))
    labels.SetOrigin((7.0, -3.0, 100.0))
    if tilted:
        c, s = np.cos(0.3), np.sin(0.3)
        labels.SetDirection([1, 0, 0, 0, c, -s, 0, s, c])
    grid = make_model_grid(labels, (4.0, 4.0, 4.0), "RAI")
    planes = find_abdominal_planes(labels, AMOS, grid, margin_mm=12.0)
    first, last = planes_of(grid, labels)
    assert planes.start == pytest.approx(first - 3, abs=1)
    assert planes.stop == pytest.approx(last + 1 + 3, abs=1)
    assert find_abdominal_planes(labels * 0, AMOS, grid) is None
    # No left kidney is this small.
    labels.SetSpacing((4.0, 4.0, 1.0))
    assert find_abdominal_planes(labels, AMOS, make_model_grid(labels, (4.0, 4.0, 4.0)), margin_mm=12.0) is None


def test_planes_are_extended_to_a_window_within_the_scan():
    assert extend_planes(slice(10, 20), 8, 100) == slice(10, 20)
    assert extend_planes(slice(10, 20), 16, 100) == slice(7, 23)
    assert extend_planes(slice(2, 6), 16, 100) == slice(0, 16)
    assert extend_planes(slice(95, 99), 16, 100) == slice(84, 100)
    assert extend_planes(slice(2, 6), 16, 9) == slice(0, 9)


@pytest.mark.slow
def test_the_shipped_model_finds_the_abdomen_and_nothing_else_is_computed(phantom, long_ct):
    windows: list[int] = []

    def count(share: float, message: str) -> None:
        if message.startswith("Segmenting window"):
            windows.append(int(message.split()[-1]))

    segmenter = Segmenter(SmallModel(vivid_network()), "cpu", coarse=lambda: Bundle.load(SHIPPED))
    found = segmenter.segment(long_ct, SegmentOptions(find_abdomen=True, keep_islands=True), count)
    within = windows[-1]
    segmenter.segment(long_ct, SegmentOptions(keep_islands=True), count)
    assert within < 0.7 * windows[-1]
    # The random labels are implausible, so there are other warnings.
    assert not any("No abdomen was found" in warning for warning in found.warnings)
    # The small network finds organs in all planes it computes, so its labels show which these are.
    first, last = planes_of(Grid.from_image(long_ct), found.labels)
    organs_first, organs_last = planes_of(Grid.from_image(long_ct), phantom.labels)
    assert first < organs_first and organs_last <= last
    assert (last - first) * 6.0 < (organs_last - organs_first) * 6.0 + 2 * ABDOMEN_MARGIN_MM + 200.0


def test_a_scan_without_an_abdomen_is_segmented_whole_with_a_warning():
    arm = np.full((40, 32, 32), -1000, np.int16)
    arm[:, 12:20, 12:20] = 50
    ct = sitk.GetImageFromArray(arm)
    ct.SetSpacing((5.0, 5.0, 5.0))
    blind = vivid_network()
    with torch.no_grad():
        blind.aggregation.head.bias[0] += 1e4
    segmenter = Segmenter(SmallModel(vivid_network()), "cpu", coarse=lambda: SmallModel(blind))
    result = segmenter.segment(ct, SegmentOptions(find_abdomen=True))
    assert any("No abdomen was found" in warning for warning in result.warnings)
    assert sitk.Hash(result.labels) == sitk.Hash(segmenter.segment(ct).labels)


def test_a_scan_of_nothing_but_air_has_no_organ():
    air = sitk.GetImageFromArray(np.full((40, 32, 32), -1000, np.int16))
    air.SetSpacing((5.0, 5.0, 5.0))
    result = Segmenter(SmallModel(vivid_network()), "cpu").segment(air, SegmentOptions(entropy=True, review=True))
    assert not sitk.GetArrayViewFromImage(result.labels).any()
    assert not sitk.GetArrayViewFromImage(result.entropy).any()


def test_the_default_model_finds_the_abdomen(dca, coarse_phantom, small_bundle, tmp_path, monkeypatch):
    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    out = tmp_path / "result"
    run = dca(
        *("segment", coarse_phantom / "ct.nii.gz", "-o", out, "--bundle", small_bundle),
        *("--find-abdomen", "--overlap", 0, "--no-scene"),
    )
    assert run.code == 0, run.err
    request = json.loads((out / "request.json").read_text())
    assert request["options"]["find_abdomen"] is True
    assert "finding the abdomen" in (out / "log.txt").read_text()
