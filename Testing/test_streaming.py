"""The low-memory pass gives what the plain pass gives, computes no more than is asked for, and holds less."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dcaseg.method import streaming
from dcaseg.method.network import DCANet
from dcaseg.method.streaming import RequestedOutputs
from small_model import vivid_network
from tensor_bytes import most_bytes_held

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
@pytest.mark.parametrize("stitching", ["raw", "background_relative", "log_softmax"])
@torch.inference_mode()
def test_values_are_those_of_the_plain_pass(volume, fusion, stitching):
    network = vivid_network(5, fusion=fusion, stitching=stitching)
    ours, parts = streaming.forward(network, volume, EVERYTHING), network.forward_all(volume)
    torch.testing.assert_close(ours.aggregated, parts.aggregated, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.stitched, network.stitch(parts.experts), rtol=1e-4, atol=1e-4)
    assert list(ours.attention) == [1, 2, 3, 4]
    for level, weights in parts.attention.items():
        torch.testing.assert_close(ours.attention[level], weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{"fusion": "concat"}, {"fusion": "none"}, {"norm": "batch"}, {"upsampling": "trilinear"}], ids=str
)
@torch.inference_mode()
def test_other_networks_give_their_result_too(volume, options):
    network = DCANet([(1,), (2, 3), (4,)], n_filters=2, **options).eval()
    ours, parts = streaming.forward(network, volume, RequestedOutputs(stitched=True)), network.forward_all(volume)
    torch.testing.assert_close(ours.aggregated, parts.aggregated, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.stitched, network.stitch(parts.experts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wanted", [EVERYTHING, RequestedOutputs(), RequestedOutputs(False, True)], ids=str)
@pytest.mark.parametrize("stitching", ["raw", "background_relative", "log_softmax"])
@torch.inference_mode()
def test_a_correction_is_added_to_the_stitched_experts(volume, stitching, wanted):
    network = DCANet([(1,), (2, 3), (4,)], n_filters=2, norm="instance", stitching=stitching, residual=True).eval()
    torch.nn.init.normal_(network.aggregation.head.weight)
    ours, parts = streaming.forward(network, volume, wanted), network.forward_all(volume)
    stitched = network.stitch(parts.experts)
    assert not torch.allclose(parts.aggregated, stitched, atol=0.1)
    if wanted.aggregated:
        torch.testing.assert_close(ours.aggregated, parts.aggregated, rtol=1e-4, atol=1e-4)
    if wanted.stitched:
        torch.testing.assert_close(ours.stitched, stitched, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_an_expert_without_organs_is_no_hindrance(volume):
    network = DCANet([(1, 2), (), (3,)], n_filters=2, norm="instance").eval()
    ours, parts = streaming.forward(network, volume, EVERYTHING), network.forward_all(volume)
    torch.testing.assert_close(ours.aggregated, parts.aggregated, rtol=1e-4, atol=1e-4)
    assert ours.attention[4].shape[1] == 2


@torch.inference_mode()
def test_without_an_aggregation_decoder_the_stitched_experts_are_the_result(volume):
    network = vivid_network(aggregation=False)
    ours = streaming.forward(network, volume, RequestedOutputs())
    torch.testing.assert_close(ours.aggregated, network(volume), rtol=1e-4, atol=1e-4)
    assert ours.stitched is None
    with pytest.raises(ValueError, match="no attention"):
        streaming.forward(network, volume, EVERYTHING)


@torch.inference_mode()
def test_experts_alone_run_no_decoder_and_only_the_attention_asked_for(volume):
    network = vivid_network()
    decoder = network.aggregation
    assert decoder is not None
    wanted = RequestedOutputs(aggregated=False, stitched=True, attention_levels=(2,))
    ours = streaming.forward(network, volume, wanted)
    assert ours.aggregated is None
    assert list(ours.attention) == [2]
    expected = network.forward_all(volume, (2,)).attention[2]
    torch.testing.assert_close(ours.attention[2], expected, rtol=1e-4, atol=1e-5)
    for part in (*decoder.ups, *decoder.blocks, decoder.head, decoder.fusions[0].gate, decoder.fusions[3].gate):
        layers = list(part) if isinstance(part, torch.nn.Sequential) else [part]
        assert calls_of(layers[0], lambda: streaming.forward(network, volume, wanted)) == 0
    assert calls_of(decoder.fusions[1].gate, lambda: streaming.forward(network, volume, wanted)) == 1


@torch.inference_mode()
def test_the_volume_itself_is_left_as_it_is(volume):
    before = volume.clone()
    streaming.forward(vivid_network(), volume, EVERYTHING)
    assert torch.equal(volume, before)


def test_it_holds_little_more_than_half_of_what_the_plain_pass_holds():
    network = vivid_network(15)
    volume = torch.rand(1, 1, 64, 64, 64)
    with torch.inference_mode():
        plain = most_bytes_held(lambda: network(volume))
        lean = most_bytes_held(lambda: streaming.forward(network, volume, RequestedOutputs()))
    assert lean < 0.6 * plain


class FromTheCPU(TorchDispatchMode):
    """Collects operations on ``meta`` that take something from the CPU: a tensor (single numbers may come), or a list
    of indices, which PyTorch copies to the device out of our sight."""

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
def test_nothing_comes_from_the_cpu_while_a_window_runs(stitching):
    # A CUDA graph cannot be captured otherwise.
    network = DCANet([(1,), (2, 3), (4,)], n_filters=2, norm="instance", stitching=stitching).eval().to("meta")
    with FromTheCPU() as seen:
        given = streaming.forward(network, torch.empty(2, 1, 32, 32, 32, device="meta"), EVERYTHING)
    assert given.stitched.shape == (2, 5, 32, 32, 32) and seen.found == []
