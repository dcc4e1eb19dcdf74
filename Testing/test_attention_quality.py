"""The attention measurements detect a checkerboard, and the networks that we train have none."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from dcaseg.evaluation.attention_quality import count_dominant_flips, measure_attention, nyquist_ratio
from dcaseg.method.network import DCANet

OWNERS = ((1,), (2, 3), (4,))


def test_white_noise_has_a_ratio_of_one_and_a_checkerboard_a_large_one() -> None:
    noise = torch.randn(2, 3, 32, 24, 40, generator=torch.Generator().manual_seed(0))
    board = (-1.0) ** torch.arange(24)[None, None, None, :, None]
    for axis in range(3):
        assert nyquist_ratio(noise, axis) == pytest.approx(1.0, abs=0.1)
    assert nyquist_ratio(noise + board, 1) > 5
    assert nyquist_ratio(noise + board, 2) == pytest.approx(1.0, abs=0.1)


def test_an_odd_or_short_side_is_rejected() -> None:
    for shape in ((1, 1, 9, 16, 16), (1, 1, 6, 16, 16)):
        with pytest.raises(ValueError, match="even side"):
            nyquist_ratio(torch.zeros(shape), 0)


def test_flips_are_counted_between_voxels_of_the_same_organ() -> None:
    labels = torch.zeros(1, 1, 1, 6, dtype=torch.long)
    labels[..., :4] = torch.tensor([1, 1, 1, 2])
    attention = torch.zeros(1, 2, 1, 1, 6)
    attention[0, 1, 0, 0, [1, 3, 5]] = 1.0
    # All three voxels of organ 1 flip. Background and the border to organ 2, which has one voxel, do not count.
    assert count_dominant_flips(attention, labels) == (3, 3)
    attention[0, 1, 0, 0, 1] = 0.0
    assert count_dominant_flips(attention, labels) == (0, 3)


def sharpened(network: DCANet) -> DCANet:
    """``network`` with gates other than zero, so that artifacts show."""
    assert network.aggregation is not None
    for fusion in network.aggregation.fusions:
        torch.nn.init.normal_(fusion.gate.weight)
    return network.eval()


@pytest.mark.parametrize(("upsampling", "clean"), [("transposed", False), ("trilinear", True)])
def test_an_untrained_network_is_clean_if_its_upsampling_is(upsampling, clean) -> None:
    torch.manual_seed(0)
    network = sharpened(DCANet(OWNERS, n_filters=4, norm="instance", upsampling=upsampling))
    smooth = torch.nn.functional.interpolate(
        torch.rand(1, 1, 8, 8, 8, generator=torch.Generator().manual_seed(2)), size=(32, 32, 32), mode="trilinear"
    )
    quality = measure_attention(network, [smooth[0, 0].numpy()], (32, 32, 32))
    assert (max(quality.nyquist) < 2) == clean


def test_a_volume_without_16_voxels_along_an_axis_or_a_network_without_attention_is_rejected() -> None:
    network = DCANet(OWNERS, n_filters=2, norm="instance")
    with pytest.raises(ValueError, match="16 voxels"):
        measure_attention(network, [np.ones((15, 32, 32), np.float32)], (32, 32, 32))
    without = DCANet(OWNERS, n_filters=2, norm="instance", fusion="none")
    with pytest.raises(ValueError, match="no attention"):
        measure_attention(without, [np.ones((32, 32, 32), np.float32)], (32, 32, 32))


@pytest.mark.slow
def test_the_command_measures_the_attention_of_a_model_on_phantoms(dca, small_bundle) -> None:
    run = dca("evaluate", "--bundle", small_bundle, "--phantoms", 1, "--attention")
    assert run.code == 0, run.err
    text = " ".join(run.out.split())
    ratios = re.search(r"Nyquist frequency is ([\d.]+) \(z\), ([\d.]+) \(y\) and ([\d.]+) \(x\)", text)
    flips = re.search(r"at ([\d.]+)% of the voxels", text)
    assert ratios is not None and flips is not None, run.out
    assert all(0.1 < float(ratio) < 10 for ratio in ratios.groups()) and 0 < float(flips[1]) < 100


def test_the_attention_of_a_label_map_is_rejected(dca, coarse_phantom) -> None:
    labels = coarse_phantom / "labels.nii.gz"
    run = dca("evaluate", "--prediction", labels, "--truth", labels, "--attention")
    assert run.code == 2 and "--attention needs a model" in run.err
