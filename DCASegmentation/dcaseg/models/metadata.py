"""What a bundle says of its model, for people and for the program.

``configs/metadata.json`` holds the fields of a MONAI bundle, which MONAI's tools and model zoos read, and under the key
``dca`` what this program needs to run the model: grid, organs, network options, partition, scores, checksum. This file
knows no torch, so that Slicer can read metadata without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..method.log_gap import Partition
from ..organs import Vocabulary

FORMAT = 1
METADATA = "configs/metadata.json"
INFERENCE = "configs/inference.json"
WEIGHTS = "models/model.safetensors"
# What bundles were saved with before; they are read, and no longer written.
OLD_WEIGHTS = "models/model.pt"
MODEL_CARD = "docs/README.md"
LICENSE = "LICENSE"

_SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
_PAPER = (
    "Yajun Liu: Divide, Conquer, and Aggregate: Asymmetric Experts for Class-Imbalanced Semi-Supervised Medical Image "
    "Segmentation. CVPR 2026."
)
# Oldest versions the inference configuration runs with, for an environment without the library.
_OLDEST = {"monai": "1.5.1", "torch": "2.4.1", "numpy": "1.26.0"}


@dataclass(frozen=True)
class TrainingData:
    """One source of training cases: ``labelled`` and ``unlabelled`` count them; ``synthetic`` ones show no patient."""

    name: str
    labelled: int
    unlabelled: int
    licence: str
    source: str = ""
    synthetic: bool = False


@dataclass(frozen=True)
class MeasuredScores:
    """Mean Dice (0 to 1) of each organ key over ``cases`` cases of ``data``, and the command that measures it."""

    data: str
    cases: int
    dice: Mapping[str, float]
    command: str = ""

    @property
    def mean_dice(self) -> float:
        """Mean over the organs."""
        return sum(self.dice.values()) / len(self.dice)


@dataclass(frozen=True)
class Weights:
    """The weight file inside the bundle: its size, its SHA-256 (hexadecimal), the type its numbers are stored in."""

    file: str
    sha256: str
    bytes: int
    dtype: str


UNSAVED = Weights(WEIGHTS, "", 0, "")

DEFAULT_OVERLAP = 0.25
"""Of neighboring windows. Half a side takes two to three times as many of them, for 0.004 more of mean Dice with the
shipped models on ten synthetic people (``dca benchmark accuracy --overlaps``); a model may be measured with another."""


@dataclass(frozen=True)
class Metadata:
    """A model, described.

    ``spacing`` (x, y, z) in mm and ``orientation`` (directions of increasing x, y and z index) are those of the model
    grid; ``hu_window`` are the HU that become 0 and 1; ``patch`` is (depth, height, width) in voxels of the model
    grid, the order of the network's arrays, and ``overlap`` the share of its sides that neighboring windows have in
    common unless a run asks for another: what the model was measured with. ``anti_aliasing`` says whether CTs are
    filtered on their way to a coarser model grid, as they were in training. ``network`` are the options of ``DCANet``;
    it and ``weights`` are filled in when the bundle is saved. ``licence`` is the weights'. ``limits`` are sentences on
    what the model cannot do.
    """

    name: str
    description: str
    vocabulary: Vocabulary
    spacing: tuple[float, float, float]
    orientation: str
    hu_window: tuple[float, float]
    patch: tuple[int, int, int]
    partition: Partition
    training_data: tuple[TrainingData, ...]
    limits: tuple[str, ...]
    licence: str = "Apache-2.0"
    version: str = "0.1.0"
    authors: str = "The SlicerDCASegmentation authors"
    copyright: str = "Copyright The SlicerDCASegmentation authors"
    scores: MeasuredScores | None = None
    network: Mapping[str, Any] = field(default_factory=dict)
    weights: Weights = UNSAVED
    overlap: float = DEFAULT_OVERLAP
    anti_aliasing: bool = False

    @property
    def class_names(self) -> list[str]:
        """Names of the channels, background first."""
        return ["background", *(organ.name for organ in self.vocabulary)]

    def to_json(self) -> dict[str, Any]:
        """The content of ``configs/metadata.json``."""
        return {**_monai_fields(self), "dca": _own_fields(self)}


def _own_fields(metadata: Metadata) -> dict[str, Any]:
    if metadata.weights == UNSAVED:
        raise ValueError("metadata are complete only when the weights they describe are saved")
    scores = metadata.scores
    return {
        "format": FORMAT,
        "vocabulary": {
            "name": metadata.vocabulary.name,
            "organs": [{"label": organ.label, "key": organ.key, "name": organ.name} for organ in metadata.vocabulary],
        },
        "spacing_mm": list(metadata.spacing),
        "orientation": metadata.orientation,
        "hu_window": list(metadata.hu_window),
        "anti_aliasing": metadata.anti_aliasing,
        "patch": list(metadata.patch),
        "overlap": metadata.overlap,
        "network": dict(metadata.network),
        "partition": metadata.partition.to_json(),
        "training_data": [asdict(source) for source in metadata.training_data],
        "licence": metadata.licence,
        "scores": None if scores is None else {**asdict(scores), "mean_dice": scores.mean_dice},
        "limits": list(metadata.limits),
        "weights": asdict(metadata.weights),
    }


def _monai_fields(metadata: Metadata) -> dict[str, Any]:
    scores = metadata.scores
    organs = ", ".join(organ.name.lower() for organ in metadata.vocabulary)
    return {
        "schema": _SCHEMA,
        "version": metadata.version,
        "changelog": {metadata.version: "first version"},
        "monai_version": _installed("monai"),
        "pytorch_version": _installed("torch"),
        "numpy_version": _installed("numpy"),
        "required_packages_version": {"dca-segmentation": _installed("dca-segmentation"), "nibabel": "5.0.0"},
        "supported_apps": {},
        "name": metadata.name,
        "task": f"Segmentation of {len(metadata.vocabulary)} abdominal organs in CT",
        "description": metadata.description,
        "authors": metadata.authors,
        "copyright": metadata.copyright,
        "data_source": "; ".join(source.name for source in metadata.training_data),
        "data_type": "nibabel",
        "image_classes": "one channel, CT in Hounsfield units",
        "label_classes": f"one channel, 0 background, then {organs}",
        "pred_classes": f"{len(metadata.class_names)} channels of logits: background, {organs}",
        "eval_metrics": {} if scores is None else {"mean_dice": scores.mean_dice},
        "intended_use": "Research. This is no medical device.",
        "references": [_PAPER],
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "hounsfield",
                    "modality": "CT",
                    "num_channels": 1,
                    "spatial_shape": list(metadata.patch),
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": True,
                    "channel_def": {"0": "image"},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(metadata.class_names),
                    "spatial_shape": list(metadata.patch),
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": True,
                    "channel_def": {str(channel): name for channel, name in enumerate(metadata.class_names)},
                }
            },
        },
    }


def _installed(distribution: str) -> str:
    try:
        # What follows a plus names the build, such as "cpu", and says nothing of the version needed.
        return version(distribution).split("+")[0]
    except PackageNotFoundError:
        return _OLDEST.get(distribution, "0")
