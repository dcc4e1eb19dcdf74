"""The network: parameter counts, attention and options."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dcaseg.method.network import DCANet, load_initial_weights
from dcaseg.method.vnet import Upsampling, initialize_kaiming

SYNAPSE_OWNERS = ((6,), (1, 2, 3, 4, 5, 7, 8, 9, 10, 11), (12, 13))
SMALL_OWNERS = ((1,), (2, 3), (4,))


def millions(module: nn.Module) -> float:
    return sum(parameter.numel() for parameter in module.parameters()) / 1e6


@pytest.fixture
def small_network() -> DCANet:
    torch.manual_seed(0)
    return DCANet(SMALL_OWNERS, n_filters=2, norm="instance").eval()


@pytest.fixture
def volume() -> torch.Tensor:
    return torch.rand(2, 1, 32, 16, 48, generator=torch.Generator().manual_seed(1))


def test_parameter_counts_match_the_paper():
    network = DCANet(SYNAPSE_OWNERS, n_filters=16, norm="batch")
    assert network.aggregation is not None
    fusions = millions(network.aggregation.fusions)
    assert millions(network.encoder) == pytest.approx(7.377, abs=5e-4)
    assert [millions(expert) for expert in network.experts] == pytest.approx([1.491, 2.072, 2.660], abs=5e-4)
    assert fusions == pytest.approx(1.830, abs=5e-4)
    assert millions(network.aggregation) - fusions == pytest.approx(2.072, abs=5e-4)
    assert millions(network) == pytest.approx(17.502, abs=5e-4)


def test_the_output_has_a_channel_for_the_background_and_each_organ(small_network, volume):
    with torch.no_grad():
        assert small_network(volume).shape == (2, 5, 32, 16, 48)


def test_attention_sums_to_one_at_every_level_and_voxel(small_network, volume):
    assert small_network.aggregation is not None
    for fusion in small_network.aggregation.fusions:
        nn.init.normal_(fusion.gate.weight)  # a zero gate gives equal weights, which would hide a missing softmax
    with torch.no_grad():
        attention = small_network.forward_all(volume).attention
    assert sorted(attention) == [1, 2, 3, 4]
    for level, weights in attention.items():
        assert weights.shape == (2, 3, *(side >> (4 - level) for side in (32, 16, 48)))
        assert weights.min() < 0.3 < 0.36 < weights.max()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones_like(weights[:, 0]))


def test_only_the_requested_attention_is_kept(small_network, volume):
    with torch.no_grad():
        assert sorted(small_network.forward_all(volume, attention_levels=(4,)).attention) == [4]


@pytest.mark.parametrize("fusion", ["average", "concat", "none"])
def test_the_other_fusions_of_figure_8_run(fusion, volume):
    network = DCANet(SMALL_OWNERS, n_filters=2, norm="instance", fusion=fusion)
    parts = network.forward_all(volume)
    assert parts.aggregated.shape == (2, 5, 32, 16, 48)
    assert bool(parts.attention) == (fusion == "average")


def test_one_expert_without_aggregation_is_the_plain_vnet(volume):
    network = DCANet([(1, 2, 3, 4)], n_filters=16, n_stages=[(3, 3, 2, 1)], dilations=[(1, 1, 1, 1)], aggregation=False)
    assert millions(network) == pytest.approx(9.449, abs=1e-3)
    parts = network.eval().forward_all(volume)
    assert torch.equal(parts.aggregated.argmax(1), parts.experts[0].argmax(1))


@pytest.mark.parametrize(
    ("head_stages", "head_dilation", "tail_stages"),
    [((3, 3, 2, 1), 1, (3, 3, 2, 1)), ((2, 2, 1, 1), 1, (4, 4, 3, 2)), ((3, 3, 2, 1), 2, (3, 3, 2, 1))],
    ids=["V1", "V2", "V3"],
)
def test_the_variants_of_table_5_can_be_built(head_stages, head_dilation, tail_stages, volume):
    network = DCANet(
        SMALL_OWNERS,
        n_filters=2,
        norm="instance",
        n_stages=[head_stages, (3, 3, 2, 1), tail_stages],
        dilations=[(head_dilation,) * 4, (1,) * 4, (1,) * 4],
    )
    with torch.no_grad():
        assert network(volume).shape == (2, 5, 32, 16, 48)
    dilations = {layer.dilation[0] for layer in network.experts[0].blocks.modules() if isinstance(layer, nn.Conv3d)}
    assert dilations == {head_dilation}


def test_an_empty_group_has_no_expert(volume):
    network = DCANet([(1, 2), (), (3,)], n_filters=2, norm="instance")
    assert len(network.experts) == 2
    assert network.expert_slots == (0, 2)
    with torch.no_grad():
        assert network.forward_all(volume).attention[4].shape[1] == 2


def test_the_network_can_be_rebuilt_from_its_options(small_network):
    rebuilt = DCANet(**small_network.options)
    rebuilt.load_state_dict(small_network.state_dict())
    assert rebuilt.options == small_network.options


@pytest.mark.parametrize("owners", [[(1,), (2,), (2, 3)], [(1,), (3,), (4,)], [(), (), ()]])
def test_owners_must_hold_every_label_once(owners):
    with pytest.raises(ValueError, match="exactly once"):
        DCANet(owners, n_filters=2)


@pytest.mark.parametrize("option", [{"norm": "group"}, {"fusion": "sum"}, {"n_stages": [(1, 1, 1, 1)]}])
def test_invalid_options_are_rejected(option):
    with pytest.raises(ValueError):
        DCANet(SMALL_OWNERS, n_filters=2, **option)


@pytest.mark.parametrize("fusion", ["dfam", "average", "concat", "none"])
@pytest.mark.parametrize("stitching", ["raw", "background_relative", "log_softmax"])
def test_a_residual_decoder_starts_with_exactly_the_stitched_experts(fusion, stitching, volume):
    network = DCANet(SMALL_OWNERS, n_filters=2, norm="instance", fusion=fusion, stitching=stitching, residual=True)
    parts = network.forward_all(volume)
    assert torch.equal(parts.aggregated, network.stitch(parts.experts))
    assert network.aggregation is not None
    network.aggregation.copy_blocks(network.experts[1])
    assert torch.equal(network(volume), network.stitch(parts.experts))


def test_a_residual_decoder_learns_while_the_experts_get_no_gradient(volume):
    network = DCANet(SMALL_OWNERS, n_filters=2, norm="instance", residual=True)
    encoded = network.encoder(volume)
    network.aggregate(encoded, network.decode_experts(encoded))[0].square().mean().backward()
    assert network.aggregation is not None and network.aggregation.head.weight.grad.abs().sum() > 0
    assert all(expert.head.weight.grad is None for expert in network.experts)


def test_the_aggregation_decoder_can_copy_the_blocks_of_a_plain_expert(small_network):
    aggregation, experts = small_network.aggregation, list(small_network.experts)
    assert aggregation is not None
    aggregation.copy_blocks(experts[1])
    for own, other in ((aggregation.ups, experts[1].ups), (aggregation.blocks, experts[1].blocks)):
        for one, two in zip(own.parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)
    with pytest.raises(ValueError, match="plain V-Net expert"):
        aggregation.copy_blocks(experts[2])


def nyquist_share(features: torch.Tensor) -> float:
    """Energy of the highest frequency along depth, divided by that of its neighbors, over all channels."""
    power = torch.fft.rfft(features.detach() - features.detach().mean(), dim=2).abs().square().sum(dim=(0, 1, 3, 4))
    return float(power[-1] / power[-4:-1].mean())


@pytest.mark.parametrize(("mode", "clean"), [("transposed", False), ("transposed_icnr", True), ("trilinear", True)])
def test_only_a_transposed_convolution_starts_with_a_checkerboard(mode, clean):
    torch.manual_seed(0)
    up = Upsampling(16, 8, "instance", mode)
    assert up(torch.zeros(1, 16, 4, 6, 8)).shape == (1, 8, 8, 12, 16)
    coarse = torch.nn.functional.avg_pool3d(torch.rand(1, 16, 34, 34, 34), 3, stride=1)
    assert (nyquist_share(up(coarse)) < 2) == clean


def test_an_unknown_up_sampling_is_rejected():
    with pytest.raises(ValueError, match="upsampling"):
        DCANet(SMALL_OWNERS, n_filters=2, upsampling="bilinear")


def test_kaiming_initialization_keeps_zero_weights():
    torch.manual_seed(0)
    network = DCANet(SMALL_OWNERS, n_filters=8, norm="instance", residual=True)
    initialize_kaiming(network)
    wide = network.encoder.blocks[3][3]
    assert wide.weight.std().item() == pytest.approx((2 / (64 * 27)) ** 0.5, rel=0.02)
    assert network.aggregation is not None
    assert not network.aggregation.head.weight.any()
    assert not network.aggregation.fusions[0].gate.weight.any()


def test_a_trilinear_network_can_start_from_transposed_convolutions(volume):
    torch.manual_seed(1)
    initial = DCANet(SMALL_OWNERS, n_filters=2, norm="instance")
    network = DCANet(SMALL_OWNERS, n_filters=2, norm="instance", upsampling="trilinear", residual=True)
    load_initial_weights(network, initial)
    kernels, reduced = initial.experts[0].ups[0][0].weight, network.experts[0].ups[0][0].reduce.weight
    torch.testing.assert_close(reduced[:, :, 0, 0, 0], kernels.mean(dim=(2, 3, 4)).T)
    # With eight equal kernels and constant features, both kinds of upsampling give the same result.
    with torch.no_grad():
        initial.experts[0].ups[0][0].weight.copy_(kernels.mean(dim=(2, 3, 4), keepdim=True).expand_as(kernels))
    constant = torch.rand(1, 32, 1, 1, 1).expand(1, 32, 4, 4, 4)
    torch.testing.assert_close(network.experts[0].ups[0][0](constant), initial.experts[0].ups[0][0](constant))
    parts = network.forward_all(volume)
    assert torch.equal(parts.aggregated, network.stitch(parts.experts))


def test_initial_weights_of_a_different_network_are_rejected():
    with pytest.raises(ValueError, match="n_filters"):
        load_initial_weights(
            DCANet(SMALL_OWNERS, n_filters=4, norm="instance"), DCANet(SMALL_OWNERS, n_filters=2, norm="instance")
        )
