"""Options of a training run, the preprocessing presets, and the options of fine-tuning and of training with clicks.

Each option is defined once, by its field: type, default, limits, and its name and help on the command line.

The published presets follow the repositories and papers they name. All presets resample with SimpleITK
(``imaging.resampling``), as inference does, because a network should see the same interpolation in training and
inference. Our presets filter a CT before it is downsampled; the published ones do not. Prepared cases are cached in HU
(``cases.save_case``), so presets with the same grid share them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import UserError
from ..interaction.click_options import ClickNetworkOptions
from ..json_io import DataError, dump, load
from ..method.log_gap import PartitionMode
from ..method.variants import (
    PAPER_DILATIONS,
    PAPER_N_STAGES,
    DiceChannels,
    FusionKind,
    Norm,
    StitchingMode,
    UpsamplingMode,
)
from ..models.metadata import Metadata
from ..option_fields import option
from ..types import StrategyName

Preset = Literal["default", "paper"]
Scaling = Literal["window", "z_score"]
Crop = Literal["center", "position"]
ShortScans = Literal["air", "repeat"]
Decay = Literal["all", "weights"]
AggregationStart = Literal["medium", "as_is"]
PseudoLabelSource = Literal["experts", "decoder"]


@dataclass(frozen=True)
class GridOptions:
    """The model grid and the scaling of intensities.

    - ``spacing`` (x, y, z) in mm, ``orientation``, and ``hu_window``, which is mapped to 0 to 1.
    - ``anti_aliasing``: filter a CT along each axis that is downsampled, in training and inference (see
      ``imaging.resampling``).

    Two options exist only for comparison with published protocols; models in bundles cannot use them:

    - ``shape`` (depth, height, width): resize every case to this number of voxels, instead of a fixed ``spacing``.
    - ``scaling``: "z_score" uses (HU - mean) / standard deviation of the case, instead of the window.
    """

    spacing: tuple[float, float, float] = option((4.0, 4.0, 4.0), above=0)
    orientation: str = "RAS"
    hu_window: tuple[float, float] = (-125.0, 275.0)
    shape: tuple[int, int, int] | None = None
    scaling: Scaling = "window"
    anti_aliasing: bool = True


@dataclass(frozen=True)
class TrainingOptions:
    """Options of one training run. The defaults are ours; ``make_paper_preset()`` is the literal reading of the paper.

    ``patch`` is (depth, height, width) in voxels of the model grid. The comments explain the other options.
    """

    grid: GridOptions = field(default_factory=GridOptions)
    # The training method (see training.strategies). Options about experts and aggregation apply only to "dca".
    strategy: StrategyName = option("dca", "dca, or a method from the paper's tables for comparison.")
    # How organs are divided among the experts. The paper's literal rule, "sequential", is fragile: see method.log_gap.
    partition: PartitionMode = option(
        "top2",
        "How to divide the organs among the experts (see dca partition).",
        flags=("--partition",),
        choices=("top2", "sequential", "balanced", "fixed", "average"),
    )
    # Off: the stitched experts are the result (one reading of the third row of Table 3).
    aggregation: bool = True
    n_filters: int = option(8, "Channels of the network at full resolution.", flags=("--filters",), minimum=1)
    # The batch statistics of two patches are noisy; instance norm does not depend on the batch.
    norm: Norm = "instance"
    # Pass all patches of a step, labeled and unlabeled, through encoder and experts as one batch in one graph. Batch
    # norm then has the statistics of all patches, at the cost of more time and memory. It has no effect with instance
    # norm or separate stages. It is on in the paper's preset, because related networks (GALoss, DHC, M3HL) also use one
    # batch.
    joint_statistics: bool = option(
        False, "Preset paper: compute batch norm over labeled and unlabeled patches together."
    )
    # "kaiming" draws the weights of 3x3x3, 2x2x2 and 1x1x1 convolutions from N(0, 2 / fan-in), as GALoss and DHC do;
    # "torch" keeps PyTorch's initialization, which is narrower.
    initialization: Literal["torch", "kaiming"] = "torch"
    n_stages: tuple[tuple[int, ...], ...] = PAPER_N_STAGES
    dilations: tuple[tuple[int, ...], ...] = PAPER_DILATIONS
    fusion: FusionKind = "dfam"
    # Transposed convolutions leave a checkerboard in features and attention maps (see method.vnet.Upsampling).
    upsampling: UpsamplingMode = "trilinear"
    # The aggregation decoder's logits start at zero and are added to the stitched experts' (see method.network.DCANet).
    residual: bool = True
    # "raw" depends on a constant in each expert's logits that its softmax ignores (see method.stitching.stitch).
    stitching: StitchingMode = "background_relative"
    patch: tuple[int, int, int] = option((48, 48, 48), minimum=1)
    labeled_per_step: int = option(2, minimum=1, key="labelled_per_step")
    unlabeled_per_step: int = option(2, minimum=0, key="unlabelled_per_step")
    steps: int = option(6000, "Length of the whole run in steps.", minimum=1)
    # The fraction of labeled patches that are centered on an organ; all organs are equally likely.
    foreground_fraction: float = option(0.75, minimum=0, maximum=1, earlier=("organ_centered",))
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = option(2e-3, "Peak learning rate.", minimum=1e-8)
    warmup_steps: int = option(100, minimum=0)
    weight_decay: float = option(1e-4, minimum=0)
    grad_clip_norm: float = option(12.0, above=0, maximum=math.inf, earlier=("gradient_limit",))
    # After a label split most channels are absent from a patch; Dice is useful only for those present.
    dice_channels: DiceChannels = "present"
    # Gives small organs more weight in the cross-entropy; otherwise their probability vanishes in the first steps. It
    # decreases to zero over each stage, because it also makes organs too large. See method.losses.
    class_balance: float = option(
        0.75, "Extra weight of small organs in the cross-entropy, from 0 (none) to 1.", minimum=0.0, maximum=1.0
    )
    # The paper trains the aggregation decoder with pseudo-labels only; true labels, where available, are better.
    supervise_aggregation: bool = True
    # The weight of the loss that ties the attention to the expert that owns the organ (see
    # strategies.dca_losses.attention_loss). The paper has no such loss.
    attention_weight: float = 0.1
    # The fraction of the steps that train encoder and experts; in the remaining steps, only the aggregation decoder
    # learns. It passes no gradient to the experts, so separate stages lose nothing, halve the time of a step, and have
    # their own learning rate schedules. 0 trains everything together.
    expert_stage_fraction: float = option(
        0.65,
        "Fraction of the steps that train the experts; the rest trains the aggregation decoder. 0 trains all together.",
        minimum=0.0,
        maximum=1.0,
        earlier=("experts_first",),
    )
    # "medium": the aggregation decoder starts its stage with the medium expert's blocks, which have the same structure.
    # "as_is": it keeps its weights, which are new or those of the initial model.
    aggregation_start: AggregationStart = option(
        "medium", "Initial weights of the aggregation decoder: a copy of the medium expert's, or its own."
    )
    # Experts and encoder also learn from a strong view of the unlabeled patches, with pseudo-labels of the averaged
    # stitched experts. The paper's experts do not.
    expert_pseudo_labels: bool = False
    # Whose pseudo-labels the aggregation decoder learns. "experts": those of the stitched experts, as in the paper.
    # "decoder": its own, from a strong view of the patch, as in FixMatch. The experts' pseudo-labels pull a decoder
    # that has become better than the experts back to them.
    pseudo_label_source: PseudoLabelSource = "decoder"
    # Voxels whose pseudo-label has a lower softmax probability are left out of the segmentation loss on unlabeled
    # patches. Otherwise organs that the teacher has not learned yet are taught as background. The paper uses all voxels
    # (0). The attention loss (see attention_weight) uses all of them, whatever their probability.
    pseudo_label_confidence: float = option(0.8, minimum=0, maximum=1)
    unsupervised_weight: float = option(1.0, minimum=0)
    # Below this fraction of its maximum, the unsupervised loss is left out to save its forward pass.
    unsup_weight_cutoff: float = option(0.05, minimum=0, earlier=("negligible_weight",))
    # The fraction of the steps (of the stage's steps, if there are two stages) over which the unsupervised weight
    # grows.
    ramp_fraction: float = option(0.5, minimum=0)
    # The decay of the averaged weights, which are validated and exported. None: no average.
    ema_decay: float | None = option(0.998, minimum=0, maximum=1, earlier=("averaging",))
    augment: bool = True
    # See training.spatial_augmentation. Synthetic patches already vary in shape.
    spatial_augmentation: bool = option(True, off="Do not scale, rotate and deform the patches of stored cases.")
    # Half precision with gradient scaling on CUDA, bfloat16 on processors with AMX (training.mixed_precision); other
    # devices use single precision.
    mixed_precision: bool = option(True, off="Train in single precision.")
    seed: int = option(0, "Seed of all random numbers.", minimum=0)
    # The steps of the experts' stage once it is over, so that a run with more steps does not return to it. None: the
    # fraction expert_stage_fraction of the steps.
    expert_stage_steps: int | None = option(None, minimum=0, earlier=("experts_steps",))
    # How patches that are not centered on an organ are placed, and how scans shorter than the patch are padded: see
    # training.sampling.
    crop: Crop = "center"
    short_scans: ShortScans = "repeat"
    # Which parameters have weight decay: "all", or "weights", which excludes norms and biases.
    decay: Decay = "weights"
    # Options of this strategy, by name; each strategy's file defines them (strategies.base.option).
    strategy_options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def make_paper_preset(cls, **changes: Any) -> TrainingOptions:
        """The preset ``paper``: the paper's patch, batch, optimizer and loss, with ``changes``."""
        literal: dict[str, Any] = {
            # The spacing of related work (see PRESETS); the slides do not state one.
            "grid": GridOptions(spacing=(1.5, 1.5, 2.0), anti_aliasing=False),
            "partition": "sequential",
            "n_filters": 16,
            "norm": "batch",
            "joint_statistics": True,
            "upsampling": "transposed",
            "residual": False,
            # As in GALoss's network A and both of DHC's networks.
            "initialization": "kaiming",
            "stitching": "raw",
            "patch": (96, 96, 96),
            "labeled_per_step": 2,
            "unlabeled_per_step": 2,
            "steps": 17000,
            "foreground_fraction": 0.0,
            # All positions inside the volume are equally likely, as in GALoss's and DHC's random crops.
            "crop": "position",
            "short_scans": "air",
            "optimizer": "sgd",
            "decay": "all",
            "learning_rate": 1e-2,
            "warmup_steps": 0,
            "grad_clip_norm": float("inf"),
            "dice_channels": "all",
            "class_balance": 0.0,
            "supervise_aggregation": False,
            "attention_weight": 0.0,
            "expert_stage_fraction": 0.0,
            "aggregation_start": "as_is",
            "expert_pseudo_labels": False,
            "pseudo_label_source": "experts",
            "pseudo_label_confidence": 0.0,
            "unsupervised_weight": 10.0,
            "unsup_weight_cutoff": 0.0,
            "ramp_fraction": 1.0,
            "ema_decay": None,
            "augment": False,
            "spatial_augmentation": False,
            "mixed_precision": False,
        }
        return cls(**{**literal, **changes})

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data for JSON. An infinite ``grad_clip_norm`` becomes null, since JSON has no infinity."""
        limit = self.grad_clip_norm
        return {**dump(self), "grad_clip_norm": limit if math.isfinite(limit) else None}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TrainingOptions:
        """Read the output of ``to_json``. An option that an older version did not have gets that version's behavior.

        Raises DataError, which is a ValueError, for unknown options and impossible values.
        """
        if not isinstance(data, Mapping):
            raise DataError("", "is not an object with training options")
        grid = data.get("grid", {})
        if isinstance(grid, Mapping):
            grid = {**_GRID_BEFORE, **grid}
        data = {**_BEFORE, **data, "grid": grid}
        infinite = [name for name in ("grad_clip_norm", "gradient_limit") if data.get(name, 0) is None]
        return load(cls, data | dict.fromkeys(infinite, math.inf))


# The behavior of versions without these options.
_BEFORE: dict[str, Any] = {
    "upsampling": "transposed",
    "residual": False,
    "initialization": "torch",
    "expert_pseudo_labels": False,
    "pseudo_label_source": "experts",
    "pseudo_label_confidence": 0.0,
    "short_scans": "air",
    "attention_weight": 0.0,
    "spatial_augmentation": False,
    "decay": "all",
}
_GRID_BEFORE: dict[str, Any] = {"anti_aliasing": False}


_ANISOTROPIC = (1.5, 1.5, 2.0)


@dataclass(frozen=True)
class Preprocessing:
    """A preprocessing preset: its ``grid``, its ``reason``, and ``changes`` to other options that it requires."""

    grid: GridOptions
    reason: str
    changes: Mapping[str, Any] = field(default_factory=dict)


PRESETS: dict[str, Preprocessing] = {
    "default": Preprocessing(
        GridOptions(),
        "Ours: 4 mm, so that a patch of 48 voxels covers the upper abdomen and training on a CPU is possible. The "
        "window of -125 to 275 HU spans fat to contrast-enhanced vessels.",
    ),
    "fine": Preprocessing(
        GridOptions(spacing=(2.0, 2.0, 2.0)),
        "Ours for a GPU: at 2 mm, the limbs of the adrenal glands are a few voxels thick. Use a patch of 96 or more.",
    ),
    "duomod": Preprocessing(
        GridOptions(spacing=_ANISOTROPIC, anti_aliasing=False),
        "AMOS as in DuoMod-Net: 1.5 x 1.5 x 2.0 mm, -125 to 275 HU mapped to 0 to 1. The paper's preset uses it: the "
        "slides do not state a spacing, and the data of MagicNet, whose protocol the paper most likely follows, have "
        "this spacing, too.",
    ),
    "galoss-amos": Preprocessing(
        GridOptions(spacing=_ANISOTROPIC, anti_aliasing=False),
        "AMOS as in GALoss: -125 to 275 HU mapped to 0 to 1. Its arrays were published without a spacing. We assume "
        "that of its Synapse data, 1.5 x 1.5 x 2.0 mm, so this equals duomod.",
    ),
    "magicnet": Preprocessing(
        GridOptions(spacing=_ANISOTROPIC, scaling="z_score", anti_aliasing=False),
        "Synapse as in MagicNet and GALoss: 1.5 x 1.5 x 2.0 mm, each volume with zero mean and unit variance. No "
        "augmentation, which needs intensities from 0 to 1. Not for a model: the mean depends on the amount of air in "
        "the scan.",
        {"augment": False},
    ),
    "dhc": Preprocessing(
        GridOptions(hu_window=(-75.0, 275.0), shape=(80, 160, 160), anti_aliasing=False),
        "DHC, GenericSSL and SKCDF: each case resized to 80 x 160 x 160 voxels, -75 to 275 HU mapped to 0 to 1 (they "
        "scale by minimum and maximum after clipping, which is the same for a CT with air and bone). Use a patch of "
        "64,128,128. Not for a model: the voxel size differs from case to case.",
    ),
}


def get_preprocessing(name: str) -> Preprocessing:
    """The preprocessing preset ``name``. Raises UserError for an unknown name."""
    if name not in PRESETS:
        raise UserError(f"'{name}' is not a preprocessing preset.", f"Choose one of: {', '.join(PRESETS)}.")
    return PRESETS[name]


# Chosen once, before any result was known: a run of a few minutes on one core, with a quarter of the usual learning
# rate. The weights are averaged over about the last fifty steps, and the aggregation decoder keeps its weights.
# Pseudo-labels are good from the start, so a short ramp is enough.
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
    """Options of a run that starts from the model of ``metadata``.

    They are the model's grid and network, then ``FINE_TUNING_DEFAULTS``, then ``changes``. If ``changes`` contain
    another grid, the model has to adapt to CTs that are prepared differently.
    """
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
        # Older bundles do not have these options.
        "upsampling": network.get("upsampling", "transposed"),
        "residual": network.get("residual", False),
    }
    return TrainingOptions(**{**shape, **FINE_TUNING_DEFAULTS, **changes})


@dataclass(frozen=True)
class ClickTrainingOptions:
    """Options of a click training run.

    Each of the ``steps`` uses ``batch`` cubes. The learning rate follows a cosine after ``warmup_steps``.
    """

    network: ClickNetworkOptions = field(default_factory=ClickNetworkOptions)
    steps: int = option(20_000, "Length of the whole run in steps.", minimum=1)
    batch: int = option(2, "Cubes per step.", minimum=1)
    learning_rate: float = option(1e-3, "Peak learning rate.", minimum=1e-8)
    warmup_steps: int = option(50, minimum=0)
    seed: int = option(0, "Seed of all random numbers.", minimum=0)

    def to_json(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return dump(self)
