"""PyTorch on the CPU: the convolutions of a single window are those of a batch of windows."""

from __future__ import annotations

import pytest
import torch

from dcaseg.inference.backends.base import Task, as_tuple
from dcaseg.inference.backends.eager import EagerBackend, has_onednn
from dcaseg.inference.device import make_cpu_device
from dcaseg.method.streaming import RequestedOutputs, StreamedOutput
from dcaseg.models.bundle import Bundle
from dcaseg.models.store import find_default_bundle
from small_model import PATCH, vivid_network
from tensor_bytes import peak_bytes

torch.set_num_threads(1)

needs_onednn = pytest.mark.skipif(not has_onednn(), reason="this PyTorch is built without oneDNN")

EVERYTHING = RequestedOutputs(True, True, (1, 2, 3, 4))


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(vivid_network(), EVERYTHING, PATCH, make_cpu_device())


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.rand(2, 1, *PATCH, generator=torch.Generator().manual_seed(5))


def assert_same(given: StreamedOutput, expected: StreamedOutput, windows: slice = slice(None)) -> None:
    """Whether ``given`` equals ``expected`` for ``windows``."""
    for ours, theirs in zip(as_tuple(given), as_tuple(expected), strict=True):
        assert (ours - theirs[windows]).abs().max() < 1e-4 * (theirs.max() - theirs.min())


@needs_onednn
def test_a_single_window_gives_the_result_it_gives_in_a_batch(task, windows):
    backend = EagerBackend(task)
    both = backend(windows)
    for one in (slice(0, 1), slice(1, 2)):
        assert_same(backend(windows[one]), both, one)


@pytest.mark.slow
@needs_onednn
def test_a_window_of_the_shipped_model_takes_little_more_than_half_the_memory_of_two():
    bundle = Bundle.load(find_default_bundle())
    backend = EagerBackend(Task(bundle.network(), RequestedOutputs(), bundle.metadata.patch, make_cpu_device()))
    windows = torch.rand(2, 1, *bundle.metadata.patch)
    alone, both = (peak_bytes(lambda given=given: backend(given)) for given in (windows[:1], windows))
    assert alone < 0.65 * both
    assert backend.windows_at_once == 1


def test_without_onednn_windows_are_run_in_pairs(task, windows, monkeypatch):
    expected = EagerBackend(task)(windows)
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    backend = EagerBackend(task)
    assert backend.windows_at_once == 2
    assert_same(backend(windows), expected)
