"""Labels on the CT's own grid against SimpleITK's resampling of the whole volume of probabilities."""

from __future__ import annotations

import multiprocessing
import tracemalloc
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from dcaseg.imaging.grid import Grid, get_canonical_view, make_model_grid
from dcaseg.inference.label_resampling import LabelResampler

N_CHANNELS = 6
OBLIQUE = sitk.VersorRigid3DTransform((0.02, 0.13, 0.05, 0.99)).GetMatrix()
AXIAL = (-1, 0, 0, 0, -1, 0, 0, 0, 1)
FLIPPED = (1, 0, 0, 0, -1, 0, 0, 0, -1)
CORONAL = (1, 0, 0, 0, 0, 1, 0, -1, 0)
SAGITTAL = (0, 0, 1, 1, 0, 0, 0, -1, 0)


def ct_grid(direction, size=(37, 31, 23), spacing=(1.1, 1.3, 2.7)):
    return Grid(size, spacing, (-13.0, 7.5, 101.0), tuple(float(value) for value in direction))


def blobs(shape, background):
    """Softmax probabilities (channel, z, y, x) with compact organs; ``background`` is the logit of the background."""
    noise = np.random.default_rng(5).normal(size=(N_CHANNELS, *shape))
    logits = 12 * np.stack([gaussian_filter(channel, 1.2) for channel in noise])
    logits[0] += background
    weights = np.exp(logits - logits.max(axis=0))
    return (weights / weights.sum(axis=0)).astype(np.float32)


def streamed_labels(probabilities, ct, model, kept=None, orientation="RAS"):
    labels = np.full(ct.shape, 99, dtype=np.uint8)
    writer = LabelResampler(get_canonical_view(labels, ct, orientation), ct, model, kept)
    for z in range(model.shape[0]):
        writer.add(z, probabilities[:, z].copy())
    return labels


def resampled_probabilities(probabilities, ct, model):
    """Every channel on the whole CT grid, (channel, z, y, x); values at the border are repeated outward."""
    resampler = sitk.ResampleImageFilter()
    resampler.SetReferenceImage(ct.make_image(np.zeros(ct.shape, np.uint8)))
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.SetOutputPixelType(sitk.sitkFloat64)
    padded = (sitk.ZeroFluxNeumannPad(model.make_image(channel), [3] * 3, [3] * 3) for channel in probabilities)
    return np.stack([sitk.GetArrayFromImage(resampler.Execute(channel)) for channel in padded])


def assert_same_but_for_ties(labels, probabilities):
    differing = labels != probabilities.argmax(axis=0)
    best, second = np.sort(probabilities, axis=0)[[-1, -2]]
    assert (best - second)[differing].max(initial=0) < 1e-4
    assert differing.mean() < 1e-3


@pytest.mark.parametrize("direction", [AXIAL, FLIPPED, CORONAL, SAGITTAL, OBLIQUE])
@pytest.mark.parametrize("background", [0.0, 6.0])
def test_labels_are_those_of_resampled_probabilities(direction, background):
    ct = ct_grid(direction)
    model = make_model_grid(ct, (3.0, 2.5, 4.0), "RAS")
    probabilities = blobs(model.shape, background)
    labels = streamed_labels(probabilities, ct, model)
    expected = resampled_probabilities(probabilities, ct, model)
    assert len(np.unique(labels)) == N_CHANNELS
    assert_same_but_for_ties(labels, expected)


@pytest.mark.parametrize("spacing", [(1.1, 1.3, 2.7), (0.6, 0.7, 0.9), (30.0, 2.0, 4.0), (2.0, 2.0, 60.0)], ids=str)
def test_labels_are_correct_for_any_spacing_of_the_model_grid(spacing):
    """Equal to the CT's, finer than it, and so coarse that one voxel or two span the scan."""
    ct = ct_grid(FLIPPED)
    model = make_model_grid(ct, spacing, "RAS")
    probabilities = blobs(model.shape, 2.0)
    assert_same_but_for_ties(
        streamed_labels(probabilities, ct, model), resampled_probabilities(probabilities, ct, model)
    )


def test_an_organ_second_everywhere_can_still_win_between_voxels():
    """Between two neighbors with different first organs, a third organ can be the most probable one."""
    ct = ct_grid(AXIAL, size=(5, 5, 5), spacing=(1.0, 1.0, 1.0))
    model = make_model_grid(ct, (2.0, 2.0, 2.0), "RAS")
    probabilities = np.zeros((4, *model.shape), np.float32)
    probabilities[1, :, :, 0::2] = probabilities[2, :, :, 1::2] = 0.55
    probabilities[3] = 0.40
    probabilities[0] = 0.05
    labels = get_canonical_view(streamed_labels(probabilities, ct, model), ct, "RAS")
    assert set(np.unique(labels[:, :, 1::2])) == {3}
    assert set(np.unique(labels[:, :, 0::2])) == {1, 2}


def test_pure_background_has_no_labels():
    ct = ct_grid(CORONAL)
    model = make_model_grid(ct, (3.0, 3.0, 3.0), "RAS")
    probabilities = np.zeros((3, *model.shape), np.float32)
    probabilities[0] = 1
    assert not streamed_labels(probabilities, ct, model).any()


def test_only_chosen_organs_are_written():
    ct = ct_grid(FLIPPED)
    model = make_model_grid(ct, (3.0, 3.0, 3.0), "RAS")
    probabilities = blobs(model.shape, 0.0)
    everything = streamed_labels(probabilities, ct, model)
    chosen = streamed_labels(probabilities, ct, model, kept=frozenset({2, 5}))
    assert np.array_equal(chosen, np.where(np.isin(everything, (2, 5)), everything, 0))
    assert set(np.unique(chosen)) == {0, 2, 5}


def test_a_model_grid_in_another_orientation_works_too():
    ct = ct_grid(FLIPPED)
    model = make_model_grid(ct, (3.0, 2.5, 4.0), "LPS")
    probabilities = blobs(model.shape, 0.0)
    labels = streamed_labels(probabilities, ct, model, orientation="LPS")
    assert_same_but_for_ties(labels, resampled_probabilities(probabilities, ct, model))


def test_grids_rotated_against_each_other_are_refused():
    ct = ct_grid(OBLIQUE)
    model = make_model_grid(ct_grid(AXIAL), (3.0, 3.0, 3.0), "RAS")
    with pytest.raises(ValueError, match="axes"):
        LabelResampler(get_canonical_view(np.zeros(ct.shape, np.uint8), ct), ct, model)


def peak_while_streaming(n_slices):
    """Bytes that numpy holds at most while a scan of ``n_slices`` is labeled, the label array itself left out."""
    ct = ct_grid(AXIAL, size=(60, 60, n_slices), spacing=(1.0, 1.0, 1.0))
    model = make_model_grid(ct, (2.0, 2.0, 2.0), "RAS")
    labels = np.zeros(ct.shape, np.uint8)
    plane = blobs((1, *model.shape[1:]), 0.0)[:, 0]
    writer = LabelResampler(get_canonical_view(labels, ct), ct, model)
    tracemalloc.start()
    for z in range(model.shape[0]):
        writer.add(z, plane.copy())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert labels.any()
    return peak


@pytest.mark.slow
def test_memory_of_a_longer_scan_grows_only_by_its_labels():
    # In a process of its own: here, threads that other tests left behind allocate at the same time.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(peak_while_streaming, 20).result()
        short, long = (pool.submit(peak_while_streaming, count).result() for count in (20, 400))
    assert long < short + 4096
