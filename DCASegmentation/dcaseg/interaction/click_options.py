"""The options of the network that corrects with clicks. This file does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..json_io import DataError, check
from ..option_fields import option


@dataclass(frozen=True)
class ClickNetworkOptions:
    """Options of a ``ClickNetwork``.

    ``n_filters``: channels at full resolution. ``side``: side of the cube in voxels, a multiple of 8. ``spacing_mm``:
    spacing of its voxels along all axes. Raises ValueError for values out of range.
    """

    n_filters: int = option(
        12, "Channels of the network at full resolution.", flags=("--filters",), minimum=1, maximum=64
    )
    side: int = option(48, "Side of the network's input cube in voxels, a multiple of 8.", minimum=16, maximum=192)
    spacing_mm: float = option(2.0, "Voxel spacing of the cube in mm.", flags=("--spacing",), minimum=0.5, maximum=6.0)

    def __post_init__(self) -> None:
        check(self)
        if self.side % 8:
            raise DataError("side", f"is {self.side}, not a multiple of 8")
