"""``dca model``: the parts of the network and their cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from ..method.variants import FusionKind, Norm
from .console import make_table, print_table
from .option_values import load_bundle, parse_patch

if TYPE_CHECKING:
    from ..method.network import DCANet

NAME = "model"
EXAMPLES = "Example: dca model --filters 16 --classes 14 --patch 96"


def run(
    bundle: Annotated[
        str | None, typer.Option(help="Show this trained model (folder or name) and ignore the network options.")
    ] = None,
    n_filters: Annotated[int, typer.Option("--filters", min=1, help="Channels at full resolution.")] = 16,
    classes: Annotated[
        int, typer.Option(min=4, help="Number of organs plus 1 for background: 14 for Synapse, 16 for AMOS.")
    ] = 14,
    single_decoder: Annotated[
        bool, typer.Option("--single-decoder", help="Show the plain V-Net with one decoder instead, for comparison.")
    ] = False,
    fusion: Annotated[FusionKind, typer.Option(help="How the features of the experts are fused.")] = "dfam",
    norm: Annotated[Norm, typer.Option(help="Normalization.")] = "batch",
    patch: Annotated[
        str | None,
        typer.Option(help="Patch size in voxels: one side, or depth,height,width.", show_default="96, or the model's"),
    ] = None,
) -> None:
    """Show the parts of the network and their cost.

    The table lists the output shape, parameters, and multiply-accumulate operations (GMAC) of each part for one patch.
    The defaults are those of the paper's network for Synapse.
    """
    from ..method.network_summary import summarize

    sides = None if patch is None else parse_patch(patch)
    if bundle is not None:
        loaded = load_bundle(bundle)
        network, title = loaded.network(), loaded.metadata.name
        sides = sides or loaded.metadata.patch
    else:
        network = _build_network(n_filters, classes, single_decoder, fusion, norm)
        title = "V-Net" if single_decoder else "DCA"
    sides = sides or (96, 96, 96)
    try:
        rows = summarize(network, sides)
    except ValueError as error:
        raise UserError(f"This patch size is not possible: {error}.", "Specify sides such as 48, 96 or 128.") from None
    part_rows = make_table(
        f"{title}, patch {' x '.join(map(str, sides))}",
        "Part", "Output (channel, depth, height, width)", "Parameters", "GMAC",
        numbers=("Parameters", "GMAC"),
    )  # fmt: skip
    for row in rows:
        shape = " x ".join(map(str, row.output_shape))
        part_rows.add_row(row.name, shape, f"{row.parameters:,}", f"{row.macs / 1e9:.3f}", end_section=row is rows[-2])
    print_table(part_rows)


def _build_network(n_filters: int, classes: int, single_decoder: bool, fusion: FusionKind, norm: Norm) -> DCANet:
    """Build a network. How the labels are divided among the experts does not change shapes and cost."""
    import torch

    from ..method.network import DCANet
    from ..method.variants import PAPER_DILATIONS, PAPER_N_STAGES

    labels = list(range(1, classes))
    with torch.device("meta"):
        return DCANet(
            owners=[labels] if single_decoder else [labels[:1], labels[1:-1], labels[-1:]],
            n_filters=n_filters,
            norm=norm,
            # The decoder of the plain V-Net has the blocks of the medium expert.
            n_stages=PAPER_N_STAGES[1:2] if single_decoder else PAPER_N_STAGES,
            dilations=PAPER_DILATIONS[1:2] if single_decoder else PAPER_DILATIONS,
            fusion=fusion,
            aggregation=not single_decoder,
        )
