"""Named ways to prepare CTs: ours, and those of the published protocols that numbers are compared with.

They are facts taken from the repositories and papers named. All resample with SimpleITK (``imaging.resampling``), as
inference does: a network that learned from one interpolation should not be asked about another. Ours filter a CT
before it becomes coarser, the published ones do not. The prepared cases
are kept on disk (``cases.save_case``), HU and all, so presets on one grid share them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .options import GridOptions

_ANISOTROPIC = (1.5, 1.5, 2.0)


@dataclass(frozen=True)
class Preprocessing:
    """The ``grid`` of a preset, its ``reason``, and ``changes`` to other options that it makes necessary."""

    grid: GridOptions
    reason: str
    changes: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preprocessing] = {
    "default": Preprocessing(
        GridOptions(),
        "Ours: 4 mm, so that a patch of 48 holds the upper abdomen and a CPU can train. Window -125 to 275 HU: fat to "
        "enhanced vessels; bone and air are told apart without it.",
    ),
    "fine": Preprocessing(
        GridOptions(spacing=(2.0, 2.0, 2.0)),
        "Ours for a GPU: 2 mm, the adrenal glands' limbs are a few voxels thick. Patch 96 or more.",
    ),
    "duomod": Preprocessing(
        GridOptions(spacing=_ANISOTROPIC, anti_aliasing=False),
        "DuoMod-Net's AMOS: 1.5 x 1.5 x 2.0 mm, -125 to 275 HU to 0..1. The paper's preset takes it: the slides say "
        "nothing of spacing, and MagicNet's data, which the paper's protocol most likely took over, have it, too.",
    ),
    "galoss-amos": Preprocessing(
        GridOptions(spacing=_ANISOTROPIC, anti_aliasing=False),
        "GALoss's AMOS: -125 to 275 HU to 0..1. Its arrays were published without a spacing; 1.5 x 1.5 x 2.0 mm, that "
        "of its Synapse, is our reading, so this equals duomod.",
    ),
    "magicnet": Preprocessing(
        GridOptions(spacing=_ANISOTROPIC, scaling="z_score", anti_aliasing=False),
        "Synapse of MagicNet, which GALoss takes as it is: 1.5 x 1.5 x 2.0 mm, zero mean and unit variance of each "
        "volume. No augmentation, which works on 0..1. Not for a model: the mean depends on how much air a scan shows.",
        {"augment": False},
    ),
    "dhc": Preprocessing(
        GridOptions(hu_window=(-75.0, 275.0), shape=(80, 160, 160), anti_aliasing=False),
        "DHC, GenericSSL and SKCDF: each case resized to 80 x 160 x 160 voxels, -75 to 275 HU to 0..1 (their minimum "
        "and maximum after clipping are the window's ends wherever a CT holds air and bone). Patch 64,128,128. Not for "
        "a model: voxels differ in size from case to case.",
    ),
}


def preprocessing(name: str) -> Preprocessing:
    """The preset ``name``. Raises UserError for a name there is not."""
    if name not in PRESETS:
        raise UserError(f"There is no preprocessing '{name}'.", f"Choose one of: {', '.join(PRESETS)}.")
    return PRESETS[name]
