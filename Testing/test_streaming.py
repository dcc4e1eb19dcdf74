"""Streaming inference: the values of the plain forward pass, only what is requested, and less memory."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcaseg.method import streaming
from dcaseg.method.network import DCANet
from dcaseg.method.streaming import RequestedOutputs
from small_model import vivid_network
from tensor_bytes import peak_bytes

torch.set_num_threads(1)

EVERYTHING = RequestedOutputs(True, True, (1, 2, 3, 4))


@pytest.fixture(scope="module")
def volume():
    return torch.rand(2, 1, 32, 16, 48, generator=torch.Generator().manual_seed(1))


def calls_of(module, run):
    """How often ``module`` ran within ``run()``."""
    calls = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    run()
    handle.remove()
    return len(calls)


@pytest.mark.parametrize("fusion", ["dfam", "average"])
@pytest.mark.parametrize("stitching", ["raw", "background_relative", "log_softmax", "average"])
@torch.inference_mode()
def test_values_match_the_plain_forward_pass(volume, fusion, stitching):
    network = vivid_network(5, fusion=fusion, stitching=stitching)
    output, expected = streaming.forward(network, volume, EVERYTHING), network.forward_all(volume)
    torch.testing.assert_close(output.aggregated, expected.aggregated, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.stitched, network.stitch(expected.experts), rtol=1e-4, atol=1e-4)
    assert list(output.attention) == [1, 2, 3, 4]
    for level, weights in expected.attention.items():
        torch.testing.assert_close(output.attention[level], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"fusion": "concat"}, {"fusion": "none"}, {"norm": "batch"}, {"upsampling": "trilinear"}], ids=str
)
@torch.inference_mode()
def test_values_match_for_other_network_options(volume, options):
    network = DCANet([(1,), (2, 3), (4,)], n_filters=2, **options).eval()
    output, expected = streaming.forward(network, volume, RequestedOutputs(stitched=True)), network.forward_all(volume)
    torch.testing.assert_close(output.aggregated, expected.aggregated, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.stitched, network.stitch(expected.experts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("requested", [EVERYTHING, RequestedOutputs(), RequestedOutputs(False, True)], ids=str)
@pytest.mark.parametrize("stitching", ["raw", "background_relative", "log_softmax"])
@torch.inference_mode()
def test_a_residual_decoder_is_added_to_the_stitched_experts(volume, stitching, requested):
    network = DCANet([(1,), (2, 3), (4,)], n_filters=2, norm="instance", stitching=stitching, residual=True).eval()
    torch.nn.init.normal_(network.aggregation.head.weight)
    output, expected = streaming.forward(network, volume, requested), network.forward_all(volume)
    stitched = network.stitch(expected.experts)
    assert not torch.allclose(expected.aggregated, stitched, atol=0.1)
    if requested.aggregated:
        torch.testing.assert_close(output.aggregated, expected.aggregated, rtol=1e-4, atol=1e-4)
    if requested.stitched:
        torch.testing.assert_close(output.stitched, stitched, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_an_empty_group_is_supported(volume):
    network = DCANet([(1, 2), (), (3,)], n_filters=2, norm="instance").eval()
    output, expected = streaming.forward(network, volume, EVERYTHING), network.forward_all(volume)
    torch.testing.assert_close(output.aggregated, expected.aggregated, rtol=1e-4, atol=1e-4)
    assert output.attention[4].shape[1] == 2


@torch.inference_mode()
def test_without_aggregation_the_stitched_experts_are_the_result(volume):
    network = vivid_network(aggregation=False)
    output = streaming.forward(network, volume, RequestedOutputs())
    torch.testing.assert_close(output.aggregated, network(volume), rtol=1e-4, atol=1e-4)
    assert output.stitched is None
    with pytest.raises(ValueError, match="no attention"):
        streaming.forward(network, volume, EVERYTHING)


@torch.inference_mode()
def test_stitched_output_does_not_run_the_aggregation_decoder(volume):
    network = vivid_network()
    decoder = network.aggregation
    assert decoder is not None
    requested = RequestedOutputs(aggregated=False, stitched=True, attention_levels=(2,))
    output = streaming.forward(network, volume, requested)
    assert output.aggregated is None
    assert list(output.attention) == [2]
    expected = network.forward_all(volume, (2,)).attention[2]
    torch.testing.assert_close(output.attention[2], expected, rtol=1e-4, atol=1e-5)
    for part in (*decoder.ups, *decoder.blocks, decoder.head, decoder.fusions[0].gate, decoder.fusions[3].gate):
        layers = list(part) if isinstance(part, torch.nn.Sequential) else [part]
        assert calls_of(layers[0], lambda: streaming.forward(network, volume, requested)) == 0
    assert calls_of(decoder.fusions[1].gate, lambda: streaming.forward(network, volume, requested)) == 1


@torch.inference_mode()
def test_the_input_volume_is_not_changed(volume):
    before = volume.clone()
    streaming.forward(vivid_network(), volume, EVERYTHING)
    assert torch.equal(volume, before)


def test_streaming_needs_less_than_60_percent_of_the_plain_pass_memory():
    network = vivid_network(15)
    volume = torch.rand(1, 1, 64, 64, 64)
    with torch.inference_mode():
        plain = peak_bytes(lambda: network(volume))
        lean = peak_bytes(lambda: streaming.forward(network, volume, RequestedOutputs()))
    assert lean < 0.6 * plain


class CpuTransferDetector(TorchDispatchMode):
    """Collects operations on ``meta`` tensors that read data from the CPU.

    These are operations with a CPU tensor (scalars are allowed) or with a list of indices, which PyTorch copies to the
    device internally.
    """

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        if func.name() == "aten::index.Tensor" or any(each.device.type != "meta" and each.ndim for each in tensors):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stitching", ["raw", "background_relative", "log_softmax"])
@torch.no_grad()
def test_no_data_comes_from_the_cpu_while_a_window_runs(stitching):
    # Otherwise, no CUDA graph could be captured.
    network = DCANet([(1,), (2, 3), (4,)], n_filters=2, norm="instance", stitching=stitching).eval().to("meta")
    with CpuTransferDetector() as detector:
        output = streaming.forward(network, torch.empty(2, 1, 32, 32, 32, device="meta"), EVERYTHING)
    assert output.stitched.shape == (2, 5, 32, 32, 32) and detector.found == []
