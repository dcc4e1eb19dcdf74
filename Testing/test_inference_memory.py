"""Peak memory of a segmentation, counted by allocations, grows little with the length of the CT."""

from __future__ import annotations

import tracemalloc
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.inference.backends.eager import has_onednn
from dcaseg.inference.segmenter import Segmenter, SegmentOptions
from dcaseg.method import streaming
from dcaseg.method.network import DCANet
from dcaseg.method.streaming import RequestedOutputs
from small_model import PATCH, SmallModel, vivid_network
from tensor_bytes import peak_bytes

torch.set_num_threads(1)

SIDE = 32
N_LABELS = 15
CHANNELS = N_LABELS + 1
VOXELS = 64 * SIDE * SIDE
LABELS_ALONE = SegmentOptions(overlap=0.0, batch=1)
MAPS_TOO = SegmentOptions(
    overlap=0.0, batch=1, attention_levels=(4,), dominant_expert=True, entropy=True, disagreement=True
)


class Held(NamedTuple):
    """Peak bytes of torch's tensors and of numpy's arrays."""

    tensors: int
    arrays: int


@pytest.fixture(scope="module")
def network():
    return vivid_network(N_LABELS)


@cache
def held(n_slices: int, network: DCANet, options: SegmentOptions) -> Held:
    """While a CT is segmented whose voxels are those of the model grid."""
    segmenter = Segmenter(SmallModel(network), "cpu")
    noise = np.random.default_rng(3).normal(scale=100, size=(n_slices, SIDE, SIDE))
    ct = sitk.GetImageFromArray(noise.astype(np.int16))
    ct.SetSpacing((4.0, 4.0, 4.0))
    # What is imported only now is no memory of the CT's.
    segmenter.segment(ct[:, :, :16], options)
    # One after the other: counting tensors takes arrays.
    tensors = peak_bytes(lambda: segmenter.segment(ct, options))
    tracemalloc.start()
    try:
        segmenter.segment(ct, options)
        return Held(tensors, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_a_longer_ct_takes_a_few_bytes_a_voxel_and_no_more_tensors(network):
    short, long = (held(n_slices, network, LABELS_ALONE) for n_slices in (64, 128))
    # The network's input is 4 bytes; the channels of every voxel would be 64.
    assert (long.tensors - short.tensors) / VOXELS < 4.5
    # Labels on the CT's grid are 1; finding islands takes some seven more for a while.
    assert (long.arrays - short.arrays) / VOXELS < 12


@pytest.mark.slow
def test_with_maps_it_takes_what_they_hold_and_no_more_tensors(network):
    short, long = (held(n_slices, network, MAPS_TOO) for n_slices in (64, 128))
    assert (long.tensors - short.tensors) / VOXELS < 4.5
    # Three maps of attention, entropy and disagreement in 16 bits, and the dominant expert: 11.
    assert (long.arrays - short.arrays) / VOXELS < 11 + 12


def test_tensors_are_one_patch_deep_a_slab_and_one_answer(network):
    window = torch.rand(1, 1, *PATCH)
    with torch.inference_mode():
        for_a_window = peak_bytes(lambda: streaming.forward(network, window, RequestedOutputs()))
    depth = PATCH[0]
    slab = 4 * (depth * SIDE * SIDE * (CHANNELS + 1) + window.numel())
    planes = 4 * 3 * CHANNELS * SIDE * SIDE
    whole_input = 4 * VOXELS
    assert held(64, network, LABELS_ALONE).tensors < slab + for_a_window + window.nbytes + planes + whole_input


@pytest.mark.skipif(not has_onednn(), reason="this PyTorch is built without oneDNN")
def test_an_odd_number_of_windows_takes_no_more_tensors_than_the_even_one_above_it(network):
    """PyTorch by itself unfolds what comes alone: the last of three windows took as much as a slab of three."""
    segmenter = Segmenter(SmallModel(network), "cpu")

    def tensors(windows: int) -> int:
        noise = np.random.default_rng(3).normal(scale=100, size=(SIDE, SIDE, windows * SIDE))
        ct = sitk.GetImageFromArray(noise.astype(np.int16))
        ct.SetSpacing((4.0, 4.0, 4.0))
        return peak_bytes(lambda: segmenter.segment(ct, SegmentOptions(overlap=0.0, body_box=False)))

    two, three, four = tensors(2), tensors(3), tensors(4)
    assert two < three < four
    # Each window more is one more of the input and of the slab, and of a plane.
    assert three - two == pytest.approx(four - three, rel=0.01)
