"""Compares two models on the same held-out cases, to see whether the new one is at least as good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError
from ..inference.segmenter import Segmenter
from ..models.bundle import Bundle
from ..training.datalist import Entry
from ..training.sources import CTFiles, Phantoms
from ..types import ProgressCallback
from .scores import Scores
from .scoring import score_entries, score_on_phantoms


@dataclass(frozen=True)
class HeldOut:
    """The cases to compare on: labeled CTs and synthetic phantoms."""

    entries: tuple[Entry, ...] = ()
    phantoms: tuple[Phantoms, ...] = ()

    @property
    def count(self) -> int:
        """Number of cases."""
        return len(self.entries) + sum(source.count for source in self.phantoms)


@dataclass(frozen=True)
class Comparison:
    """Dice of two models on the same cases, on the original grid of each CT."""

    old: Scores
    new: Scores

    @property
    def at_least_as_good(self) -> bool:
        """Whether the new model's mean Dice over organs is at least that of the old one."""
        return self.new.mean() >= self.old.mean()


def compare(
    old: Bundle, new: Bundle, cases: HeldOut, device: str = "auto", progress: ProgressCallback | None = None
) -> Comparison:
    """Score both models like ``dca evaluate``.

    Raises UserError if they segment different organs or there are no cases.
    """
    if old.metadata.vocabulary != new.metadata.vocabulary:
        raise UserError(
            f"{old.metadata.name} segments the organs of {old.metadata.vocabulary.name}, but the run those of "
            f"{new.metadata.vocabulary.name}.",
            "Compare models of the same organs.",
        )
    if not cases.count:
        raise UserError(
            "There are no held-out cases to compare the models on.",
            "Specify a list with labeled test cases (--data), or train with some cases of the list under 'validation'.",
        )
    bundles = (old, new)
    scored = []
    for index, bundle in enumerate(bundles):

        def report(fraction: float, message: str, index: int = index, name: str = bundle.metadata.name) -> None:
            if progress is not None:
                progress((index + fraction) / len(bundles), f"{name}: {message}")

        scored.append(_score_model(bundle, cases, device, report))
    return Comparison(*scored)


def _score_model(bundle: Bundle, cases: HeldOut, device: str, progress: ProgressCallback) -> Scores:
    segmenter = Segmenter(bundle, device, backend="auto")
    scores = Scores(bundle.metadata.vocabulary)
    score_entries(scores, segmenter, cases.entries, progress=progress)
    for source in cases.phantoms:
        on_phantoms = score_on_phantoms(
            segmenter, scores.vocabulary, source.count, first_seed=source.first_seed, progress=progress
        )
        for case, dice in zip(on_phantoms.cases, on_phantoms.to_array(), strict=True):
            scores.add(case, {metric.key: dice for metric in scores.metrics})
    return scores


def get_held_out_cases(sources: Sequence[object]) -> HeldOut:
    """The validation cases of a run. Raises UserError for cases that are only available during training."""
    entries: list[Entry] = []
    phantoms: list[Phantoms] = []
    for source in sources:
        if isinstance(source, CTFiles):
            entries += source.to_entries()
        elif isinstance(source, Phantoms):
            phantoms.append(source)
        else:
            raise UserError(
                "The validation cases of this run are only available during training.",
                "Specify other cases with --data.",
            )
    return HeldOut(tuple(entries), tuple(phantoms))
