"""Options of a training run: the presets, named preprocessings, and fine-tuning.

They are facts taken from the repositories and papers named. All resample with SimpleITK (``imaging.resampling``), as
inference does: a network that learned from one interpolation should not be asked about another. Ours filter a CT
before it becomes coarser, the published ones do not. The prepared cases
are kept on disk (``cases.save_case``), HU and all, so presets on one grid share them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from ..errors import UserError
from ..method.dfam import FusionKind
from ..method.experts import PAPER_DILATIONS, PAPER_N_STAGES
from ..method.log_gap import PartitionMode
from ..method.losses import DiceChannels
from ..method.stitching import StitchingMode
from ..method.vnet import Norm, UpsamplingMode
from ..models.metadata import Metadata
from ..types import StrategyName

Preset = Literal["default", "paper"]
Scaling = Literal["window", "z_score"]
Crop = Literal["center", "position"]
ShortScans = Literal["air", "repeat"]
Decay = Literal["all", "weights"]


@dataclass(frozen=True)
class GridOptions:
    """The model grid: ``spacing`` (x, y, z) in mm, ``orientation``, and the HU window mapped to 0..1.

    ``anti_aliasing`` filters a CT along each axis that becomes coarser, as inference then does (see
    ``imaging.resampling``).

    The other two are for comparison with published protocols, and no bundle has them: ``shape`` (depth, height, width)
    gives every case so many voxels whatever its size in mm, in place of ``spacing``; ``scaling`` "z_score" takes HU
    minus the case's mean over its standard deviation in place of the window.
    """

    spacing: tuple[float, float, float] = (4.0, 4.0, 4.0)
    orientation: str = "RAS"
    hu_window: tuple[float, float] = (-125.0, 275.0)
    shape: tuple[int, int, int] | None = None
    scaling: Scaling = "window"
    anti_aliasing: bool = True


@dataclass(frozen=True)
class TrainingOptions:
    """Options of one run; the defaults are ours, ``paper()`` is the literal reading of the paper.

    ``patch`` is (depth, height, width) in voxels of the model grid.
    """

    grid: GridOptions = field(default_factory=GridOptions)
    # How to learn; what is said of experts and aggregation below is for "dca" alone. See training.strategies.
    strategy: StrategyName = "dca"
    # How organs are divided among the experts. The literal rule ("sequential") is fragile: see method.log_gap.
    partition: PartitionMode = "top2"
    # Off: the stitched experts are the result (a reading of Table 3's third row).
    aggregation: bool = True
    n_filters: int = 8
    # Batch statistics of two patches are noise; instance norm does not depend on the batch at all.
    norm: Norm = "instance"
    # All patches of a step, labelled or not, go through encoder and experts as one batch, in one graph, so that batch
    # norm has the statistics of all, for time and memory of the plain pass. Instance norm and stages have no use for
    # it. On in the paper's preset: the family's networks (GALoss, DHC, M3HL) see labelled and unlabelled patches as
    # one batch.
    joint_statistics: bool = False
    # "kaiming" draws the weights of 3x3x3, 2x2x2 and 1x1x1 convolutions from N(0, 2 / fan-in), as GALoss and DHC do;
    # "torch" leaves PyTorch's own, which is narrower.
    initialization: Literal["torch", "kaiming"] = "torch"
    n_stages: tuple[tuple[int, ...], ...] = PAPER_N_STAGES
    dilations: tuple[tuple[int, ...], ...] = PAPER_DILATIONS
    fusion: FusionKind = "dfam"
    # Transposed convolutions leave a checkerboard in features and attention maps (see method.vnet.Upsampling).
    upsampling: UpsamplingMode = "trilinear"
    # The aggregation decoder's logits correct the stitched experts' and start at zero (see method.network.DCANet).
    residual: bool = True
    # A raw stitch is moved by the constant that a softmax leaves free in each expert's logits.
    stitching: StitchingMode = "background_relative"
    patch: tuple[int, int, int] = (48, 48, 48)
    labelled_per_step: int = 2
    unlabelled_per_step: int = 2
    steps: int = 6000
    # Share of labelled patches centered on an organ, each organ as often as any other.
    foreground_fraction: float = 0.75
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    grad_clip_norm: float = 12.0
    # After a label split most channels are absent from a patch; only those present carry a useful Dice.
    dice_channels: DiceChannels = "present"
    # Weighs small organs up in the cross-entropy, or the softmax gives up on them in the first steps; fades to nothing
    # over each stage, because it also makes organs too large. See method.objective.
    class_balance: float = 0.75
    # The paper teaches the aggregation decoder by pseudo-labels alone; true labels, where there are some, are better.
    supervise_aggregation: bool = True
    # Share of the steps in which encoder and experts learn; in the rest the aggregation decoder learns on what they
    # have become. It hands them no gradient, so nothing is lost, a step takes half the time, and both stages have a
    # schedule of their own. 0 trains all together.
    expert_stage_fraction: float = 0.65
    # The aggregation decoder starts its stage with the blocks of the medium expert, which are its own; "as_is" leaves
    # it the weights it has: fresh ones, or those of the model that the run starts from.
    aggregation_start: Literal["medium", "as_is"] = "medium"
    # The experts and the encoder learn from unlabelled patches, too: from the averaged stitched experts' labels. The
    # paper's experts do not. On three balls (Testing/test_training.py), 120 steps, three seeds, it cost 0.15 of mean
    # Dice: what the teacher has not learned yet is taught as background.
    expert_pseudo_labels: bool = False
    unsupervised_weight: float = 1.0
    # Below this share of its maximum the unsupervised term is left out, and its pass over the network saved.
    unsup_weight_cutoff: float = 0.05
    # Share of the steps (of a stage's, where there are two) over which the unsupervised weight grows.
    ramp_fraction: float = 0.5
    # Weights averaged over some last hundred steps; what is validated and shipped. None keeps the plain weights.
    ema_decay: float | None = 0.998
    augment: bool = True
    # Half precision on CUDA, with scaled gradients; other devices compute in full.
    mixed_precision: bool = True
    seed: int = 0
    # Steps of the experts' stage, once it is over: a run that is made longer does not go back to it. None: the share
    # experts_first of the steps.
    expert_stage_steps: int | None = None
    # Where patches that are not centered on an organ lie, and what continues a scan shorter than the patch: see
    # training.sampling.
    crop: Crop = "center"
    short_scans: ShortScans = "repeat"
    # What weight decay pulls at: "weights" spares norms and biases, of which a small network cannot do without.
    decay: Decay = "all"
    # Options that only this strategy has, by name; each strategy's file declares its own (strategies.choosing).
    strategy_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def paper(cls, **changes: Any) -> TrainingOptions:
        """Preset ``paper``: section 3.6 of the method's dossier, with the paper's patch, batch, optimizer and loss."""
        literal: dict[str, Any] = {
            # The family's voxels (see training.preprocessing); the slides state none.
            "grid": GridOptions(spacing=(1.5, 1.5, 2.0), anti_aliasing=False),
            "partition": "sequential",
            "n_filters": 16,
            "norm": "batch",
            "joint_statistics": True,
            "upsampling": "transposed",
            "residual": False,
            # Kaiming: GALoss's network A, DHC's both.
            "initialization": "kaiming",
            "stitching": "raw",
            "patch": (96, 96, 96),
            "labelled_per_step": 2,
            "unlabelled_per_step": 2,
            "steps": 17000,
            "foreground_fraction": 0.0,
            # Every position inside the volume alike, as GALoss's and DHC's random crops.
            "crop": "position",
            "short_scans": "air",
            "optimizer": "sgd",
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "grad_clip_norm": float("inf"),
            "dice_channels": "all",
            "class_balance": 0.0,
            "supervise_aggregation": False,
            "expert_stage_fraction": 0.0,
            "aggregation_start": "as_is",
            "expert_pseudo_labels": False,
            "unsupervised_weight": 10.0,
            "unsup_weight_cutoff": 0.0,
            "ramp_fraction": 1.0,
            "ema_decay": None,
            "augment": False,
            "mixed_precision": False,
        }
        return cls(**{**literal, **changes})

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainingOptions:
        """Options from ``to_json``. Those of an older version that lack an option have what it did before."""
        data = {_RENAMED.get(key, key): value for key, value in data.items()}
        if "grad_clip_norm" in data and data["grad_clip_norm"] is None:
            # JSON knows no infinity.
            data["grad_clip_norm"] = math.inf
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown:
            raise ValueError(f"unknown training options: {', '.join(unknown)}")
        values = {key: _tuples(value) for key, value in {**_BEFORE, **data}.items()}
        grid = {key: _tuples(value) for key, value in {**_GRID_BEFORE, **data.get("grid", {})}.items()}
        return cls(**{**values, "grid": GridOptions(**grid)})


# Options under the names that earlier versions wrote.
_RENAMED = {
    "experts_first": "expert_stage_fraction",
    "experts_steps": "expert_stage_steps",
    "negligible_weight": "unsup_weight_cutoff",
    "organ_centered": "foreground_fraction",
    "gradient_limit": "grad_clip_norm",
    "averaging": "ema_decay",
}
# What a run of a version without the option did.
_BEFORE: dict[str, Any] = {
    "upsampling": "transposed",
    "residual": False,
    "initialization": "torch",
    "expert_pseudo_labels": False,
    "short_scans": "air",
}
_GRID_BEFORE: dict[str, Any] = {"anti_aliasing": False}


def _tuples(value: Any) -> Any:
    """JSON has lists where the options hold tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


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


# Chosen once, before any result: a run of a few minutes on one core whose learning rate is a quarter of a training's
# from nothing; it averages over some last fifty steps, and keeps what the aggregation decoder knows. Pseudo-labels
# are good from the start, so they need no long ramp.
FINE_TUNING_DEFAULTS: Mapping[str, Any] = {
    "steps": 160,
    "learning_rate": 5e-4,
    "warmup_steps": 10,
    "expert_stage_fraction": 0.5,
    "aggregation_start": "as_is",
    "class_balance": 0.0,
    "ramp_fraction": 0.3,
    "ema_decay": 0.98,
}


def fine_tuning_options(metadata: Metadata, **changes: Any) -> TrainingOptions:
    """Options of a run that goes on from the model of ``metadata``: its grid and network, ``FINE_TUNING_DEFAULTS``,
    then ``changes``. A grid among these is another preparation of the CTs, which the model has to get used to."""
    network = metadata.network
    shape = {
        "grid": GridOptions(
            metadata.spacing, metadata.orientation, metadata.hu_window, anti_aliasing=metadata.anti_aliasing
        ),
        "patch": metadata.patch,
        "partition": metadata.partition.mode,
        "n_filters": network["n_filters"],
        "norm": network["norm"],
        "n_stages": tuple(tuple(stages) for stages in network["n_stages"]),
        "dilations": tuple(tuple(dilation) for dilation in network["dilations"]),
        "fusion": network["fusion"],
        "aggregation": network["aggregation"],
        "stitching": network["stitching"],
        # Bundles from before these options existed lack them.
        "upsampling": network.get("upsampling", "transposed"),
        "residual": network.get("residual", False),
    }
    return TrainingOptions(**{**shape, **FINE_TUNING_DEFAULTS, **changes})
