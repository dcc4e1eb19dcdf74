"""Windows, weights and the rolling slab against MONAI's sliding window."""

from __future__ import annotations

import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import sliding_window_inference
from monai.inferers.utils import _get_scan_interval

from dcaseg.inference.sliding_window import (
    Padding,
    SlabAggregator,
    average_planes,
    compute_window_positions,
    importance_map,
)
from small_model import vivid_network

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def network():
    return vivid_network()


def whole_volume(planes):
    return torch.stack([plane for _, plane in planes], dim=1)


@pytest.mark.parametrize("size", [(32, 32, 32), (33, 50, 97), (100, 40, 32), (65, 64, 63)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.625, 0.99])
def test_window_positions_are_those_of_monai(size, overlap):
    patch = (32, 32, 32)
    interval = _get_scan_interval(size, patch, 3, (overlap,) * 3)
    if overlap == 0.99:
        size = tuple(min(length, 36) for length in size)
    theirs = [tuple(part.start for part in window) for window in dense_patch_slices(size, patch, interval)]
    assert compute_window_positions(size, patch, overlap) == theirs


@pytest.mark.parametrize("overlap", [-0.1, 1.0])
def test_an_overlap_outside_0_to_1_is_refused(overlap):
    with pytest.raises(ValueError, match="overlap"):
        compute_window_positions((32, 32, 32), (16, 16, 16), overlap)


@pytest.mark.parametrize("weighting", ["gaussian", "constant"])
@pytest.mark.parametrize("patch", [(32, 32, 32), (16, 48, 33), (1, 8, 8)])
def test_weights_are_those_of_monai(weighting, patch):
    theirs = compute_importance_map(patch, mode=weighting, sigma_scale=0.125)
    torch.testing.assert_close(importance_map(patch, weighting), theirs, rtol=2e-6, atol=0)


def test_gaussian_weights_never_vanish():
    assert importance_map((96, 96, 96), "gaussian").min() >= 1e-3


@pytest.mark.parametrize(
    ("size", "overlap", "weighting"),
    [
        ((70, 33, 41), 0.25, "gaussian"),
        ((70, 33, 33), 0.6, "constant"),
        ((20, 40, 25), 0.5, "gaussian"),
        ((32, 32, 32), 0.5, "constant"),
    ],
)
@torch.inference_mode()
def test_streamed_planes_equal_the_result_of_monai(network, size, overlap, weighting):
    volume = torch.rand(size, generator=torch.Generator().manual_seed(1))
    planes = average_planes(
        volume, (32, 32, 32), lambda windows: {"result": network(windows)}, overlap, weighting, batch=3
    )
    ours = whole_volume([(z, named["result"]) for z, named in planes])
    # MONAI pads all sides with air; here a short scan is padded with its end slices along z.
    missing = max(32 - size[0], 0)
    longer = torch.cat([volume[:1]] * (missing // 2) + [volume] + [volume[-1:]] * (missing - missing // 2))
    theirs = sliding_window_inference(
        longer[None, None], (32, 32, 32), 3, network, overlap=overlap, mode=weighting, padding_mode="constant"
    )[0][:, missing // 2 : missing // 2 + size[0]]
    assert ours.shape == theirs.shape
    assert (torch.softmax(ours, 0) - torch.softmax(theirs, 0)).abs().max() < 1e-4
    assert torch.equal(ours.argmax(0), theirs.argmax(0))
    assert len(theirs.argmax(0).unique()) > 1, "a network that says one thing everywhere would prove nothing"


def test_planes_come_once_and_in_order():
    volume = torch.rand(50, 20, 20)
    planes = average_planes(volume, (16, 16, 16), lambda windows: {"copy": windows}, overlap=0.3)
    seen = []
    for z, named in planes:
        seen.append(z)
        torch.testing.assert_close(named["copy"][0], volume[z])
    assert seen == list(range(50))


def held_while_streaming(depth):
    """Maximum number of bytes in the slab for a scan of ``depth`` planes."""
    weights = importance_map((16, 16, 16), "gaussian")
    slab = SlabAggregator((depth, 24, 24), weights)
    window = {"result": torch.ones(5, 16, 16, 16)}
    held = []
    for z, y, x in compute_window_positions((depth, 24, 24), (16, 16, 16), 0.5):
        for _ in slab.finish(z):
            pass
        slab.add((z, y, x), window)
        held.append(slab.nbytes)
    return max(held)


def test_a_longer_scan_needs_no_larger_slab():
    sums_and_weights = (5 + 1) * 16 * 24 * 24 * 4 + 16**3 * 4
    assert held_while_streaming(32) == held_while_streaming(640) == sums_and_weights


def test_half_precision_sums_take_half_the_memory_and_stay_close_and_finite():
    volume = torch.rand(40, 40, 40, generator=torch.Generator().manual_seed(4))

    def predict(windows):
        logits = torch.cat([windows * 20 - 10, windows.square() * 20], dim=1)
        logits[:, 1, 0, 0, 0] = 1e6  # too large for float16, in a corner of each window
        return {"result": logits, "other": logits}

    planes = dict(average_planes(volume, (16, 16, 16), predict, 0.5, half=("other",)))
    result, other = (torch.stack([planes[z][name] for z in range(40)], dim=1) for name in ("result", "other"))
    ordinary = result.abs() < 100
    assert 0.9 < ordinary.float().mean() < 1
    assert torch.isfinite(other).all() and other[~ordinary].min() > 100
    assert 0 < (result - other)[ordinary].abs().max() < 0.05
    slab = SlabAggregator((16, 16, 16), importance_map((16, 16, 16), "constant"), half=("other",))
    before = slab.nbytes
    whole = predict(torch.zeros(1, 1, 16, 16, 16))
    slab.add((0, 0, 0), {name: values[0] for name, values in whole.items()})
    assert slab.nbytes - before == 2 * 16**3 * (4 + 2)


def test_the_last_planes_come_after_the_last_window_is_reported():
    """The caller frees the network's memory then, before the planes are processed."""
    calls = []
    planes = average_planes(
        torch.rand(24, 16, 16),
        (16, 16, 16),
        lambda windows: {"result": windows},
        0.5,
        on_window=lambda *at: calls.append(at),
    )
    seen = [(z, calls[-1]) for z, _ in planes]
    assert [at for z, at in seen if z < 8] == [(0, 2)] * 8 and [at for z, at in seen if z >= 8] == [(2, 2)] * 16
    assert calls == [(0, 2), (1, 2), (2, 2)]


def test_a_window_out_of_order_is_refused():
    slab = SlabAggregator((64, 16, 16), importance_map((16, 16, 16), "constant"))
    window = {"result": torch.ones(1, 16, 16, 16)}
    slab.add((0, 0, 0), window)
    list(slab.finish(8))
    slab.add((8, 0, 0), window)
    with pytest.raises(ValueError, match="out of order"):
        slab.add((4, 0, 0), window)
    with pytest.raises(ValueError, match="out of order"):
        slab.add((40, 0, 0), window)


def test_a_small_volume_is_padded_in_halves_with_its_end_slices_and_with_air_on_its_sides():
    padding = Padding.to_patch((10, 16, 20), (16, 16, 16))
    assert padding == Padding(before=(3, 0, 0), after=(3, 0, 0))
    assert Padding.to_patch((9, 16, 20), (16, 16, 16)) == Padding(before=(3, 0, 0), after=(4, 0, 0))
    volume = torch.rand(10, 16, 20)
    padded = padding.apply(volume)
    assert padded.shape == (16, 16, 20)
    assert torch.equal(padded[3:13], volume)
    assert all(torch.equal(plane, volume[0]) for plane in padded[:3])
    assert all(torch.equal(plane, volume[-1]) for plane in padded[13:])
    narrow = Padding.to_patch((16, 10, 20), (16, 16, 16)).apply(torch.ones(16, 10, 20))
    assert narrow[:, :3].sum() == narrow[:, 13:].sum() == 0
