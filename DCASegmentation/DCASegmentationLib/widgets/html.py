"""Texts of the panel as HTML: errors, and what a user should know of a model."""

from __future__ import annotations

from html import escape

from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.models.metadata import TrainingData
from DCASegmentationLib.widgets.model_selection import Model


def errorText(error: UserError) -> str:
    """What is wrong, in bold, and what to do, as text for a label."""
    return f"<b>{escape(error.problem)}</b> {escape(error.remedy)}"


def modelCard(model: Model) -> str:
    """Organs, spacing, training data, scores, limits and licence of ``model``; for a damaged one, what is wrong."""
    if model.metadata is None:
        return f"<p><b>{escape(str(model.problem))}</b></p>"
    metadata = model.metadata
    spacing = " x ".join(f"{side:g}" for side in metadata.spacing)
    rows = [
        (_("Version"), f"{metadata.name} {metadata.version}"),
        (_("Organs"), ", ".join(organ.name for organ in metadata.vocabulary)),
        (_("Spacing"), f"{spacing} mm"),
        (_("Training data"), "; ".join(_trainingData(each) for each in metadata.training_data)),
        (_("Scores"), _scores(model)),
        (_("Limits"), " ".join(metadata.limits)),
        (_("Licence"), metadata.licence),
    ]
    table = "".join(f"<p><b>{escape(name)}</b><br>{escape(value)}</p>" for name, value in rows if value)
    return f"<p>{escape(metadata.description)}</p>{table}"


def _trainingData(data: TrainingData) -> str:
    return _("{name} ({labelled} labelled, {unlabelled} unlabelled cases, {licence})").format(
        name=data.name, labelled=data.labelled, unlabelled=data.unlabelled, licence=data.licence
    )


def _scores(model: Model) -> str:
    scores = model.metadata.scores if model.metadata else None
    if scores is None:
        return _("Not measured.")
    return _("Mean Dice {dice:.2f} over {cases} cases: {data}.").format(
        dice=scores.mean_dice, cases=scores.cases, data=scores.data
    )
