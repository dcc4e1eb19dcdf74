"""Shapes, parameters and cost of the network's parts."""

from __future__ import annotations

import pytest
import torch

from dcaseg.method.channel_attention import AttendingNet
from dcaseg.method.ensemble import EnsembleNet
from dcaseg.method.network import DCANet
from dcaseg.method.network_summary import PartSummary, summarize

OWNERS_OF_13_ORGANS = ((6,), (1, 2, 3, 4, 5, 7, 8, 9, 10, 11), (12, 13))


@pytest.fixture(scope="module")
def paper() -> dict[str, PartSummary]:
    with torch.device("meta"):
        network = DCANet(OWNERS_OF_13_ORGANS)
    return {row.name: row for row in summarize(network, (96, 96, 96))}


def millions(parameters: int) -> float:
    return round(parameters / 1e6, 3)


def giga(macs: int) -> float:
    return round(macs / 1e9, 1)


def test_the_papers_network_has_the_papers_parameter_counts(paper):
    assert {name: millions(row.parameters) for name, row in paper.items()} == {
        "Encoder": 7.377,
        "Head expert": 1.491,
        "Medium expert": 2.072,
        "Tail expert": 2.660,
        "DFAM DeB-6": 1.377,
        "DFAM DeB-7": 0.345,
        "DFAM DeB-8": 0.086,
        "DFAM DeB-9": 0.022,
        "Aggregation decoder": 2.072,
        "Total": 17.502,
    }


def test_the_papers_network_costs_137_8_gmac_for_a_patch_of_96(paper):
    costs = {name: giga(row.macs) for name, row in paper.items()}

    assert costs["Total"] == 137.8
    assert costs["Encoder"] == 15.4
    assert (costs["Head expert"], costs["Medium expert"], costs["Tail expert"]) == (14.8, 20.2, 31.6)
    assert costs["Aggregation decoder"] == 20.2
    assert costs["DFAM DeB-9"] == 19.1
    assert giga(sum(row.macs for name, row in paper.items() if name.startswith("DFAM"))) == 35.7


def test_output_shape_of_every_part(paper):
    assert paper["Encoder"].output_shape == (256, 6, 6, 6)
    assert paper["Tail expert"].output_shape == (14, 96, 96, 96)
    assert paper["DFAM DeB-6"].output_shape == (128, 12, 12, 12)
    assert paper["DFAM DeB-9"].output_shape == (16, 96, 96, 96)
    assert paper["Aggregation decoder"].output_shape == paper["Total"].output_shape == (14, 96, 96, 96)


def test_a_single_decoder_is_the_baseline_vnet():
    with torch.device("meta"):
        network = DCANet([range(1, 14)], n_stages=[(3, 3, 2, 1)], dilations=[(1, 1, 1, 1)], aggregation=False)

    rows = {row.name: row for row in summarize(network)}

    assert list(rows) == ["Encoder", "Decoder", "Total"]
    assert millions(rows["Total"].parameters) == 9.449
    assert giga(rows["Total"].macs) == 35.5


def test_an_empty_group_has_no_row_and_the_patch_need_not_be_a_cube():
    with torch.device("meta"):
        network = DCANet([(1,), (), (2,)], n_filters=4, norm="instance", fusion="concat")

    rows = {row.name: row for row in summarize(network, (32, 48, 64))}

    assert "Medium expert" not in rows
    assert rows["Tail expert"].output_shape == (3, 32, 48, 64)
    assert rows["Fusion (concat) DeB-9"].parameters == 2 * 4 * 4 + 4


def test_a_summary_counts_all_parameters_and_does_not_change_the_network():
    network = DCANet([(1,), (2,), (3,)], n_filters=4).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    total = summarize(network, (32, 32, 32))[-1]

    assert total.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert network(torch.zeros(2, 1, 32, 32, 32)).device.type == "cpu"


@pytest.mark.parametrize("patch", [(96, 96, 90), (0, 96, 96)])
def test_a_patch_with_the_wrong_size_is_rejected(patch):
    network = DCANet([(1,), (2,), (3,)], n_filters=2)

    with pytest.raises(ValueError, match="divisible by 16"):
        summarize(network, patch)


@pytest.mark.parametrize("kind", ["ensemble", "attending"])
def test_networks_of_comparison_methods_are_summarized_as_a_whole(kind):
    options = {"owners": [[1, 2, 3]], "n_filters": 2, "n_stages": [(3, 3, 2, 1)], "dilations": [(1, 1, 1, 1)],
               "aggregation": False}  # fmt: skip
    network = EnsembleNet(2, **options) if kind == "ensemble" else AttendingNet((32, 32, 32), **options)
    *_, last, total = summarize(network, (32, 32, 32))
    assert total.parameters == sum(parameter.numel() for parameter in network.parameters())
    assert total.output_shape == (4, 32, 32, 32) and last.macs > 0 and last.output_shape
    if kind == "ensemble":
        single = summarize(DCANet(**options), (32, 32, 32))[-1]
        assert total.macs == 2 * single.macs
