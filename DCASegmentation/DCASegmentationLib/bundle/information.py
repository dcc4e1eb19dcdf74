"""A bundle's description as a table."""

from __future__ import annotations

from ..method.log_gap import GROUPS
from .loading import Bundle


def information(bundle: Bundle) -> list[tuple[str, str]]:
    """Rows (name, value) that tell a user what the model is, without loading its network."""
    metadata = bundle.metadata
    spacing = " x ".join(f"{side:g}" for side in metadata.spacing)
    depth, height, width = metadata.patch
    low, high = metadata.hu_window
    names = {organ.label: organ.name for organ in metadata.vocabulary}
    groups = zip(GROUPS, metadata.partition.owners, strict=True)
    rows = [
        ("Name", f"{metadata.name} {metadata.version}"),
        ("Folder", str(bundle.folder)),
        ("Description", metadata.description),
        ("Limits", " ".join(metadata.limits)),
        ("Organs", f"{metadata.vocabulary.name}, {len(metadata.vocabulary)}"),
        *(
            (f"{group.capitalize()} expert", ", ".join(names[label] for label in labels) or "-")
            for group, labels in groups
        ),
        ("Grid", f"{spacing} mm, {metadata.orientation}"),
        ("HU window", f"{low:g} to {high:g} HU"),
        ("Patch", f"{depth} x {height} x {width} voxels (depth, height, width)"),
        (
            "Weights",
            f"{metadata.weights.bytes / 1e6:.1f} MB, {metadata.weights.dtype}, SHA-256 {metadata.weights.sha256}",
        ),
        ("Licence", metadata.licence),
    ]
    for data in metadata.training_data:
        counts = f"{data.labelled} labelled and {data.unlabelled} unlabelled cases"
        rows.append(("Training data", f"{data.name}: {counts}, {data.licence}"))
    if metadata.scores is None:
        return [*rows, ("Mean Dice", "not measured")]
    rows.append(
        ("Mean Dice", f"{metadata.scores.mean_dice:.3f} ({metadata.scores.cases} cases: {metadata.scores.data})")
    )
    organs = metadata.vocabulary.by_key
    rows += [(f"Dice {organs[key].name}", f"{value:.3f}") for key, value in metadata.scores.dice.items()]
    return rows
