"""HTML texts for the panel's labels: error messages and the description of a model."""

from __future__ import annotations

from html import escape

from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.models.metadata import TrainingData
from DCASegmentationLib.widgets.model_selection import Model


def formatError(error: UserError) -> str:
    """An error as label text: what is wrong, in bold, then what to do."""
    return f"<b>{escape(error.problem)}</b> {escape(error.remedy)}"


def formatModelCard(model: Model) -> str:
    """Description, organs, spacing (mm), training data, scores, limits, and license; for a damaged model, the error."""
    if model.metadata is None:
        return f"<p><b>{escape(str(model.problem))}</b></p>"
    metadata = model.metadata
    spacing = " x ".join(f"{side:g}" for side in metadata.spacing)
    rows = [
        (_("Version"), f"{metadata.name} {metadata.version}"),
        (_("Organs"), ", ".join(organ.name for organ in metadata.vocabulary)),
        (_("Spacing"), f"{spacing} mm"),
        (_("Training data"), "; ".join(_formatTrainingData(each) for each in metadata.training_data)),
        (_("Scores"), _formatScores(model)),
        (_("Limits"), " ".join(metadata.limits)),
        (_("License"), metadata.licence),
    ]
    table = "".join(f"<p><b>{escape(name)}</b><br>{escape(value)}</p>" for name, value in rows if value)
    return f"<p>{escape(metadata.description)}</p>{table}"


def _formatTrainingData(data: TrainingData) -> str:
    return f"{data.name} ({data.counts}, {data.licence})"


def _formatScores(model: Model) -> str:
    scores = model.metadata.scores if model.metadata else None
    if scores is None:
        return _("Not measured.")
    text = _("Mean Dice {dice:.2f} over {cases} case: {data}.")
    if scores.cases != 1:
        text = _("Mean Dice {dice:.2f} over {cases} cases: {data}.")
    return text.format(dice=scores.mean_dice, cases=scores.cases, data=scores.data)
