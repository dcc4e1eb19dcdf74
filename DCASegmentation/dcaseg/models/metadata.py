"""The description of a model in its bundle, for people and for the program.

``configs/metadata.json`` holds the fields of a MONAI bundle, which MONAI's tools and model zoos read, and under the key
``dca`` what this program needs to run the model: grid, organs, network options, partition, scores, checksum. This file
does not import torch, so that Slicer can read metadata without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..json_io import dump
from ..method.log_gap import Partition
from ..option_fields import make_option_metadata
from ..organs import Vocabulary

FORMAT = 1
METADATA = "configs/metadata.json"
CLICK_NETWORK = "dca_clicks"
"""The part of the metadata that the bundle of a click network has (see ``interaction.click_network``)."""
INFERENCE = "configs/inference.json"
WEIGHTS = "models/model.safetensors"
MODEL_CARD = "docs/README.md"
LICENSE = "LICENSE"


def is_bundle_file(name: str) -> bool:
    """Whether a bundle of ours has a file with this path."""
    return name in (METADATA, INFERENCE, WEIGHTS, MODEL_CARD, LICENSE)


_SCHEMA = "https://project-monai.github.io/schema/meta_schema_20240725.json"
_PAPER = (
    "Yajun Liu et al.: Divide, Conquer, and Aggregate: Asymmetric Experts for Class-Imbalanced Semi-Supervised Medical "
    "Image Segmentation. CVPR 2026."
)
# The oldest versions with which the inference configuration runs, used if a package is not installed.
_OLDEST = {"monai": "1.5.1", "torch": "2.4.1", "numpy": "1.26.0"}


@dataclass(frozen=True)
class TrainingData:
    """One source of training cases, with its numbers of labeled and unlabeled cases. ``synthetic``: not patients."""

    name: str
    labeled: int = field(metadata=make_option_metadata(key="labelled"))
    unlabeled: int = field(metadata=make_option_metadata(key="unlabelled"))
    licence: str
    source: str = ""
    synthetic: bool = False

    @property
    def counts(self) -> str:
        """The numbers of cases in words, such as "24 labeled and 8 unlabeled cases" or "1 labeled case"."""
        groups = ((self.labeled, "labeled"), (self.unlabeled, "unlabeled"))
        numbers = " and ".join(f"{count} {kind}" for count, kind in groups if count)
        return f"{numbers or 'no'} case{'s' if self.labeled + self.unlabeled != 1 else ''}"


@dataclass(frozen=True)
class MeasuredScores:
    """The mean Dice (0 to 1) of each organ (by key) over ``cases`` cases of ``data``, and the command to measure it."""

    data: str
    cases: int
    dice: Mapping[str, float]
    command: str = ""

    @property
    def mean_dice(self) -> float:
        """The mean over the organs."""
        return sum(self.dice.values()) / len(self.dice)


@dataclass(frozen=True)
class Weights:
    """The weight file in the bundle: its size in bytes, its SHA-256 (hexadecimal), and the type of its numbers."""

    file: str
    sha256: str
    bytes: int
    dtype: str


UNSAVED = Weights(WEIGHTS, "", 0, "")

DEFAULT_OVERLAP = 0.25
"""The default overlap of neighboring windows, as a fraction of their sides. An overlap of half a side needs two to
three times as many windows, for 0.004 more mean Dice with models of 4 mm on ten phantoms (``dca benchmark
accuracy --overlaps``). A model may have been measured with another overlap."""


@dataclass(frozen=True)
class Metadata:
    """The description of a model.

    ``spacing`` (x, y, z) in mm and ``orientation`` (directions of increasing x, y and z index) define the model grid.
    ``hu_window`` are the HU that become 0 and 1. ``patch`` is (depth, height, width) in voxels of the model grid, the
    order of the network's arrays. ``overlap`` is the fraction of their sides by which neighboring windows overlap
    unless a run asks for another value; the model was measured with it. ``anti_aliasing`` says whether CTs are filtered
    before they are resampled to a coarser model grid, as in training. ``network`` are the options of its class
    (``method.ensemble.get_network_class``); ``network`` and ``weights`` are set when the bundle is saved. ``licence``
    is the license of the weights. ``limits`` are sentences on what the model cannot do.
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
        """The names of the channels, background first."""
        return ["background", *(organ.name for organ in self.vocabulary)]

    @property
    def has_own_experts(self) -> bool:
        """Whether each group of organs has an expert of its own. If not, the groups only structure scores."""
        experts = [owned for owned in self.network.get("owners", ()) if owned]
        return len(experts) > 1 and self.network.get("stitching") != "average"

    def to_json(self) -> dict[str, Any]:
        """The content of ``configs/metadata.json``. Raises ValueError before the weights are saved."""
        return {**_make_monai_fields(self), "dca": _own_fields(self)}


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
        "training_data": [dump(source) for source in metadata.training_data],
        "licence": metadata.licence,
        "scores": None if scores is None else {**asdict(scores), "mean_dice": scores.mean_dice},
        "limits": list(metadata.limits),
        "weights": asdict(metadata.weights),
    }


def _make_monai_fields(metadata: Metadata) -> dict[str, Any]:
    scores = metadata.scores
    organs = ", ".join(organ.name.lower() for organ in metadata.vocabulary)
    return {
        "schema": _SCHEMA,
        "version": metadata.version,
        "changelog": {metadata.version: "first version"},
        "monai_version": _get_installed_version("monai"),
        "pytorch_version": _get_installed_version("torch"),
        "numpy_version": _get_installed_version("numpy"),
        "required_packages_version": {
            "dca-segmentation": _get_installed_version("dca-segmentation"),
            "nibabel": "5.0.0",
        },
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
        "intended_use": "Research. This is not a medical device.",
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


def _get_installed_version(distribution: str) -> str:
    try:
        # The part after a plus names the build, such as "cpu", and is not needed here.
        return version(distribution).split("+")[0]
    except PackageNotFoundError:
        return _OLDEST.get(distribution, "0")
