"""Selection of a device, and fallbacks when memory runs out."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dcaseg.errors import BundleError, UserError
from dcaseg.inference.device import Device, Plan, choose_device, is_out_of_memory, make_cpu_device
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.sliding_window import RESULT, WindowPrediction
from small_model import PATCH, vivid_network

torch.set_num_threads(1)

GPU = Device(torch.device("cuda"), "a GPU", half=True)


@pytest.fixture
def windows():
    return torch.rand(5, 1, *PATCH, generator=torch.Generator().manual_seed(2))


def hungry(max_windows):
    """A network that runs out of memory above ``max_windows`` at once, as on a device."""

    def take_memory(_, given):
        if len(given[0]) > max_windows:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {len(given[0])} GiB.")

    network = vivid_network()
    network.encoder.register_forward_pre_hook(take_memory)
    return network


def test_running_out_of_memory_halves_the_batch_and_changes_no_result(windows):
    messages = []
    enough = WindowPrediction(lambda _: vivid_network(), SegmentOptions(batch=5), make_cpu_device(), messages.append)
    short = WindowPrediction(lambda _: hungry(2), SegmentOptions(batch=8), make_cpu_device(), messages.append)
    torch.testing.assert_close(short(windows)[RESULT], enough(windows)[RESULT], rtol=1e-3, atol=2e-3)
    assert short.plan.batch == 2
    assert len(messages) == 2
    assert "continuing with 4" in messages[0]
    assert "continuing with 2" in messages[1]


def test_a_device_too_small_for_one_window_falls_back_to_the_cpu():
    plan, message = Plan(GPU, 1).get_fallback(torch.cuda.OutOfMemoryError("CUDA out of memory."))
    assert plan.device.torch_device.type == "cpu"
    assert not plan.device.half
    assert "a GPU" in message
    assert "CPU" in message


def test_an_operation_missing_on_a_device_falls_back_to_the_cpu():
    apple = Device(torch.device("mps"), "Apple GPU (MPS)")
    plan, message = Plan(apple, 2).get_fallback(
        NotImplementedError("The operator 'aten::conv3d' is not implemented for MPS")
    )
    assert plan.device.torch_device.type == "cpu"
    assert "lacks an operation" in message


def test_the_network_moves_with_the_device(windows):
    """``meta`` stands for a device that cannot run the network: it holds shapes and no numbers."""
    moved = []

    def network_on(device):
        moved.append(device.type)
        return vivid_network() if device.type == "cpu" else hungry(0)

    messages = []
    meta = Device(torch.device("meta"), "a tiny device")
    predict = WindowPrediction(network_on, SegmentOptions(batch=1), meta, messages.append)
    result = predict(windows[:2])[RESULT]
    assert moved == ["meta", "cpu"]
    assert result.shape == (2, 4, *PATCH)
    assert messages == ["a tiny device does not have enough memory for a single window: continuing on the CPU."]


def test_too_little_memory_for_one_window_on_the_cpu_is_a_user_error(windows):
    predict = WindowPrediction(lambda _: hungry(0), SegmentOptions(), make_cpu_device(), print)
    with pytest.raises(UserError, match="memory"):
        predict(windows)


def test_other_errors_of_the_network_are_not_memory_errors(windows):
    predict = WindowPrediction(lambda _: vivid_network(), SegmentOptions(), make_cpu_device(), print)
    with pytest.raises(RuntimeError) as caught:
        predict(windows[:, :, :-3])
    assert not is_out_of_memory(caught.value)


def test_outputs_that_are_not_finite_are_reported(windows):
    network = vivid_network()
    with torch.no_grad():
        network.encoder.get_parameter(next(name for name, _ in network.encoder.named_parameters())).fill_(torch.nan)
    predict = WindowPrediction(lambda _: network, SegmentOptions(), make_cpu_device(), print)
    with pytest.raises(BundleError, match="not finite"):
        predict(windows[:1])


def test_overflow_in_half_precision_is_repeated_in_single_precision(windows):
    network = vivid_network()
    with torch.no_grad():
        network.aggregation.head.bias += 1e6
    messages = []
    half = Device(torch.device("cpu"), "CPU in half precision", half=True)
    predict = WindowPrediction(lambda _: network, SegmentOptions(), half, messages.append)
    result = predict(windows[:1])[RESULT]
    assert torch.isfinite(result).all()
    assert messages == ["Half precision overflowed: continuing in single precision."]
    assert not predict.plan.device.half


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] not enough memory: you tried to allocate 9"), True),
        (RuntimeError("Exception thrown in SimpleITK ReadImage: std::bad_alloc"), True),
        (RuntimeError("itk::ERROR: Failed to allocate memory for image."), True),
        (OSError(12, "Cannot allocate memory"), True),
        (ImportError("libtorch_cpu.so: failed to map segment: Cannot allocate memory"), True),
        (RuntimeError("Given groups=1, expected input to have 1 channels"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_memory_errors_are_distinguished_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_auto_finds_a_device_with_a_description():
    device = choose_device("auto")
    assert device.torch_device.type in ("cuda", "mps", "cpu")
    assert device.description
    assert device.half == (device.torch_device.type == "cuda")


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "xpu"])
def test_a_missing_device_is_refused_with_a_remedy(name):
    with pytest.raises(UserError) as caught:
        choose_device(name)
    assert "auto" in caught.value.remedy


def test_freed_memory_is_kept_only_where_the_c_library_is_glibc():
    # In a separate process, because the setting cannot be undone.
    script = (
        "import platform; from dcaseg.inference.process_settings import keep_freed_memory;"
        "assert keep_freed_memory() == (platform.libc_ver()[0] == 'glibc')"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
