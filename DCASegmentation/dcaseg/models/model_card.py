"""The model card (docs/README.md) and the license of a bundle, written from its metadata."""

from __future__ import annotations

from ..method.log_gap import GROUPS
from .metadata import Metadata

_APACHE = """{copyright}

Licensed under the Apache License, Version 2.0 (the "License"); you may not use this model except in compliance with
the License. You may obtain a copy of the License at

    http://www.apache.org/licenses/LICENSE-2.0

Unless required by applicable law or agreed to in writing, software distributed under the License is distributed on an
"AS IS" BASIS, WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the License for the
specific language governing permissions and limitations under the License.
"""


def format_model_card(metadata: Metadata) -> str:
    """Markdown text for new users: what the model does, how well, what it was trained on, and what it cannot do."""
    return "\n\n".join(
        [
            f"# {metadata.name}",
            metadata.description,
            "For research only. This is not a medical device.",
            "## Limits\n\n" + "\n".join(f"- {sentence}" for sentence in metadata.limits),
            "## Organs\n\n" + _format_organs(metadata),
            "## Scores\n\n" + _format_scores(metadata),
            "## Input\n\n" + _format_input(metadata),
            "## Training data\n\n" + _format_training_data(metadata),
            "## Use\n\n" + _format_use(metadata),
            f"## License\n\nWeights: {metadata.licence}. See LICENSE.\n",
        ]
    )


def format_license_text(metadata: Metadata) -> str:
    """The content of the bundle's LICENSE file."""
    if metadata.licence == "Apache-2.0":
        return _APACHE.format(copyright=metadata.copyright)
    return f"{metadata.copyright}\n\nThe weights are licensed under {metadata.licence}.\n"


def _format_organs(metadata: Metadata) -> str:
    groups = {label: name for name, group in zip(GROUPS, metadata.partition.owners, strict=True) for label in group}
    shares = dict(zip(metadata.partition.ranking, metadata.partition.proportions, strict=True))
    how = f"by log-gap analysis (mode {metadata.partition.mode}) of the labeled training cases"
    if metadata.has_own_experts:
        kind, text = "expert", f"Organs were assigned to experts {how}."
    else:
        kind, text = "group", f"The groups were formed {how}. They are used only to group the scores."
    lines = [f"Vocabulary {metadata.vocabulary.name}. {text}", ""]
    lines += [f"| label | organ | {kind} | share of foreground voxels |", "|---|---|---|---|"]
    lines += [
        f"| {organ.label} | {organ.name} | {groups[organ.label]} | {100 * shares.get(organ.label, 0.0):.2f} % |"
        for organ in metadata.vocabulary
    ]
    return "\n".join(lines)


def _format_scores(metadata: Metadata) -> str:
    scores = metadata.scores
    if scores is None:
        return "Not measured."
    names = {organ.key: organ.name for organ in metadata.vocabulary}
    count = f"{scores.cases} case{'s' if scores.cases != 1 else ''}"
    lines = [f"Mean Dice {scores.mean_dice:.3f} over {count}: {scores.data}."]
    if scores.command:
        lines[0] += f" Measured with `{scores.command}`."
    lines += ["", "| organ | Dice |", "|---|---|"]
    lines += [f"| {names.get(key, key)} | {value:.3f} |" for key, value in scores.dice.items()]
    return "\n".join(lines)


def _format_input(metadata: Metadata) -> str:
    spacing = " x ".join(f"{side:g}" for side in metadata.spacing)
    depth, height, width = metadata.patch
    low, high = metadata.hu_window
    return (
        f"CT in Hounsfield units, any orientation and spacing. It is resampled to {spacing} mm (x, y, z) in "
        f"orientation {metadata.orientation}; {low:g} to {high:g} HU become 0 to 1. The input of the network is a "
        f"patch of {depth} x {height} x {width} voxels (depth, height, width); patches overlap by "
        f"{metadata.overlap:.0%}. Its output has {len(metadata.class_names)} channels of logits, background first."
    )


def _format_training_data(metadata: Metadata) -> str:
    lines = ["| data | labeled | unlabeled | license | source |", "|---|---|---|---|---|"]
    lines += [
        f"| {data.name} | {data.labeled} | {data.unlabeled} | {data.licence} | {data.source} |"
        for data in metadata.training_data
    ]
    return "\n".join(lines)


def _format_use(metadata: Metadata) -> str:
    return (
        "With SlicerDCASegmentation, from this folder:\n\n"
        "    dca segment CT -o OUT --bundle .\n\n"
        'With MONAI, after `pip install -e ".[monai]"` in a clone of SlicerDCASegmentation, whose package has the '
        "network:\n\n"
        "    python -m monai.bundle run --config_file configs/inference.json --bundle_root . "
        "--image CT.nii.gz --output_dir OUT\n\n"
        "`dca segment --keep-islands --no-body-box` gives the same labels. Without these options, `dca segment` "
        "removes pieces that are far too small to be the organ, and does not run the network on the air around the "
        "body."
    )
