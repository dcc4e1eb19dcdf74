"""Measures how many of the errors the first findings of a review contain, mostly on phantoms.

Training draws phantoms with noise of 6 to 22 HU, voxels of 1.5 to 2.5 mm in plane and slices of 2.5 to 5 mm, half of
them in the portal-venous phase, and none with a missing organ (``training``). The phantoms here are harder: the noise
is 25 to 45 HU, slices are thicker or planes coarser than in training, the portal-venous phase does not occur, and most
people lack one or two organs.

Orders of findings that are compared:

- ``review``: the findings of the review in its own order.
- ``random``, ``size``: the same findings in random order, or the largest first. Both benefit from the review's choice
  of findings.
- ``entropy, same findings``: the same findings by decreasing mean entropy.
- ``entropy, own findings``: findings made and ordered by entropy alone, as without a review. They consist of the most
  uncertain voxels, with the same total volume and the same size limit as the review's findings, by decreasing sum of
  entropy.

No finding of any order is wider than ``ReviewOptions.max_extent_mm`` along an axis of the model's grid, so that a user
can judge it at a glance. Only the voxels of its mask count.

There are two budgets. One is the number of findings. Since a large finding takes longer to check, the other is volume:
each order takes findings up to the volume of the review's first N, including part of the last one.

An erroneous voxel is one whose label differs from the truth. Many lie along borders that are off by one voxel of the
model. *Gross* errors are those that no shift of a border by one voxel of the model would correct. An organ is wrongly
segmented if its Dice is below 0.7. It is reached if the findings contain a quarter of the voxels where result and truth
differ about it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ..imaging.grid import Grid
from ..imaging.label_comparison import compute_dice_by_label
from ..imaging.resampling import resample
from ..inference.label_resampling import NearestResampler
from ..inference.options import SegmentOptions
from ..inference.segmenter import Result, Segmenter
from ..organs import Vocabulary
from ..review.evidence import Bytes
from ..review.regions import ReviewOptions, compute_error_probability, dilate, find_borders, split_into_regions
from ..review.schema import MAX_FINDINGS
from ..synthesis.phantom.case import Phantom, generate
from ..types import ProgressCallback

TUNING_SEEDS = 500_000
"""First of the seeds used to choose the review's options; never used to report results."""
REPORT_SEEDS = 600_000
"""First of the seeds used to report results; never used to choose anything."""

_PHASES = ("arterial", "none", "delayed")
_REMOVABLE = ("gallbladder", "spleen", "right_kidney", "left_kidney", "prostate_uterus")


@dataclass(frozen=True)
class ShiftedScan:
    """Arguments of ``synthesis.phantom.case.generate`` for a scan unlike those of training.

    ``spacing`` is (x, y, z) in mm; ``missing`` holds the keys of the missing organs.
    """

    spacing: tuple[float, float, float]
    phase: str
    noise_hu: float
    missing: tuple[str, ...]


def draw_shifted_scan(seed: int) -> ShiftedScan:
    """Draw the scan of the person ``seed``."""
    generator = np.random.default_rng([seed, 7])
    if generator.random() < 0.5:
        in_plane, between_slices = generator.uniform(0.9, 1.4), generator.uniform(5.5, 8.0)
    else:
        in_plane, between_slices = generator.uniform(2.8, 3.6), generator.uniform(2.0, 3.5)
    missing = generator.choice(_REMOVABLE, size=int(generator.integers(0, 3)), replace=False)
    return ShiftedScan(
        spacing=(round(float(in_plane), 2), round(float(in_plane), 2), round(float(between_slices), 2)),
        phase=str(generator.choice(_PHASES)),
        noise_hu=round(float(generator.uniform(25.0, 45.0)), 1),
        missing=tuple(sorted(str(key) for key in missing)),
    )


def generate_shifted_scan_phantom(seed: int) -> Phantom:
    """The person ``seed``, scanned as ``draw_shifted_scan`` draws it."""
    scan = draw_shifted_scan(seed)
    return generate(seed, scan.spacing, phase=scan.phase, noise_hu=scan.noise_hu, missing=scan.missing)


FIRST = (5, 10, 20)
OURS = "review"
ORDERS = (OURS, "random", "size", "entropy, own findings", "entropy, same findings")

_WRONG_BELOW = 0.7
_REACHED = 0.25
_SHUFFLES = 200

Amounts = NDArray[np.float64]


@dataclass(frozen=True)
class FindingErrors:
    """The contents of the findings of one case. Index 0 is outside all findings, then come ranks 1 to N.

    ``ml`` is the volume, ``errors`` the number of erroneous voxels, ``gross`` the number of gross errors (voxels of the
    model's grid), ``entropy`` the mean entropy. ``organ_errors`` maps the key of each wrongly segmented organ to the
    number of voxels where result and truth differ about it.
    """

    ml: Amounts
    errors: Amounts
    gross: Amounts
    entropy: Amounts
    organ_errors: dict[str, Amounts]

    @property
    def count(self) -> int:
        """Number of findings."""
        return len(self.ml) - 1


@dataclass(frozen=True)
class ReviewRecall:
    """Fractions (0 to 1) reached by the first ``first`` findings of an order; NaN if there is nothing to reach.

    ``same_ml_errors`` and ``same_ml_gross`` use the volume of the review's first findings as the budget.
    """

    case: str
    order: str
    first: int
    ml: float
    errors: float
    gross: float
    organs: float
    same_ml_errors: float
    same_ml_gross: float


@dataclass
class Calibration:
    """How often voxels are wrong, by the error probability that the review gives them.

    ``counts`` (border, value, quantity): voxels away from borders, then those at borders; the network's own error
    probability, 0 to 255; the quantities are the number of voxels, of wrong voxels, and the sum of the error
    probability (0 to 1) that the review uses.
    """

    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 256, 3)))

    @classmethod
    def count(cls, raw: Bytes, calibrated: Bytes, border: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> Calibration:
        """Count voxels (all arrays have one axis): ``raw`` and ``calibrated`` error probability, 0 to 255."""
        index = raw + 256 * border.astype(np.intp)
        columns = [np.bincount(index, weights, 512) for weights in (None, wrong.astype(float), calibrated / 255)]
        return cls(np.stack(columns, axis=1).reshape(2, 256, 3).astype(float))

    def add(self, other: Calibration) -> None:
        """Add the voxels of ``other``."""
        self.counts += other.counts

    @property
    def expected_error(self) -> float:
        """Expected calibration error, 0 to 1; NaN without voxels.

        It is the mean over all voxels of the difference between the error probability and the share of wrong voxels
        among those with the same evidence, in at most ten bins of equal width each for borders and elsewhere.
        """
        bins = np.minimum(np.arange(256) * 10 // 255, 9)
        binned = np.stack([[np.bincount(bins, column, 10) for column in side.T] for side in self.counts])
        return float(np.abs(binned[:, 1] - binned[:, 2]).sum() / total) if (total := binned[:, 0].sum()) else math.nan

    def to_json(self) -> dict[str, Any]:
        """The expected calibration error, and the share of wrong voxels by the network's error probability."""
        bins = np.searchsorted(np.array(_CALIBRATION_EDGES) * 255, np.arange(256), side="right") - 1
        table = []
        for name, side in zip(("elsewhere", "borders"), self.counts, strict=True):
            for index, lower in enumerate(_CALIBRATION_EDGES):
                voxels, wrong, used = side[bins == index].sum(axis=0)
                if voxels:
                    row = {"voxels": int(voxels), "wrong": round(wrong / voxels, 4), "review": round(used / voxels, 4)}
                    table.append({"where": name, "from": lower, **row})
        return {"expected_calibration_error": _round_or_none(self.expected_error), "table": table}


_CALIBRATION_EDGES = (0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


class ReviewScorer:
    """Compares a reviewed result with the truth, and counts the errors inside findings.

    ``truth`` must be on the CT's grid. ``known`` are its annotated labels (None: all); others count as background.
    Raises ValueError if the result has no review.
    """

    def __init__(
        self, case: str, result: Result, truth: sitk.Image, vocabulary: Vocabulary, known: Sequence[int] | None = None
    ) -> None:
        if result.review is None:
            raise ValueError("the result needs a review")
        known = tuple(vocabulary.by_label) if known is None else tuple(known)
        self.case, self._known = case, known
        self._result, self._review = result, result.review
        self._ct = Grid.from_image(result.labels)
        self._grid = result.review.grid
        self._labels = _filter_labels(sitk.GetArrayFromImage(result.labels), known)
        self._true = _filter_labels(sitk.GetArrayFromImage(truth), known)
        on_grid = _filter_labels(sitk.GetArrayFromImage(resample(truth, self._grid, "nearest")), known)
        self._on_grid = on_grid
        self._gross = _find_gross_errors(_filter_labels(result.review.evidence.labels, known), on_grid)
        dice = compute_dice_by_label(self._labels, self._true, len(vocabulary))
        self.wrong_organs = tuple(organ for organ in vocabulary if dice[organ.label - 1] < _WRONG_BELOW)
        self.error_ml = float(np.count_nonzero(self._labels != self._true)) * self._ct.volume_ml_per_voxel

    def compute_calibration(self) -> Calibration:
        """The calibration of the review's error probability on the model's grid.

        It counts the voxels that belong to an annotated organ in the result or the truth, and uncertain background.
        """
        evidence = self._review.evidence
        wrong = _filter_labels(evidence.labels, self._known) != self._on_grid
        counted = (evidence.error_probability > 0) | (evidence.labels > 0) | (self._on_grid > 0)
        # An organ that the truth does not include may be right or wrong.
        counted &= np.isin(evidence.labels, (0, *self._known)) & np.isin(evidence.alternative, (0, *self._known))
        return Calibration.count(
            evidence.error_probability[counted],
            compute_error_probability(evidence)[counted],
            find_borders(evidence)[counted],
            wrong[counted],
        )

    def measure_review_findings(self) -> FindingErrors:
        """Contents of the review's findings."""
        return self._measure_findings(sitk.GetArrayFromImage(self._review.ranks), len(self._review.review.findings))

    def measure_entropy_findings(self) -> FindingErrors:
        """Contents of findings made from entropy alone, see ``entropy, own findings`` in the module's docstring."""
        entropy = self._review.evidence.entropy
        voxels = int(np.count_nonzero(sitk.GetArrayViewFromImage(self._review.ranks)))
        wanted = round(voxels * self._ct.volume_ml_per_voxel / self._grid.volume_ml_per_voxel)
        at_least = np.cumsum(np.bincount(entropy.ravel(), minlength=256)[::-1])
        threshold = max(255 - int(np.searchsorted(at_least, wanted)), 1)
        weights = np.where(entropy >= threshold, entropy, 0).astype(np.int64)
        limit = max(ReviewOptions.max_ml / self._grid.volume_ml_per_voxel, ReviewOptions.min_voxels)
        pieces = split_into_regions(
            weights, self._grid.spacing[::-1], ReviewOptions.max_extent_mm, MAX_FINDINGS, lambda box, mask: limit
        )
        sums = np.bincount(pieces.ravel(), weights.ravel(), MAX_FINDINGS + 1)
        pieces = NearestResampler(self._grid, self._ct).on_ct(pieces, self._ct)
        # A finding may contain no voxel of a coarse CT.
        order = sorted(set(np.unique(pieces).tolist()) - {0}, key=lambda piece: (-sums[piece], piece))
        ranks = np.zeros(256, np.uint8)
        ranks[order] = np.arange(1, len(order) + 1, dtype=np.uint8)
        return self._measure_findings(ranks[pieces], len(order))

    def _measure_findings(self, ranks: Bytes, count: int) -> FindingErrors:
        wrong = self._labels != self._true

        def count_inside(mask: NDArray[np.bool_]) -> Amounts:
            return np.bincount(ranks[mask], minlength=count + 1).astype(float)

        model_ranks = sitk.GetArrayFromImage(resample(self._ct.make_image(ranks), self._grid, "nearest"))
        voxels = np.bincount(model_ranks.ravel(), minlength=count + 1)
        entropy = np.bincount(model_ranks.ravel(), self._review.evidence.entropy.ravel(), count + 1)
        return FindingErrors(
            ml=np.bincount(ranks.ravel(), minlength=count + 1).astype(float) * self._ct.volume_ml_per_voxel,
            errors=count_inside(wrong),
            gross=np.bincount(model_ranks[self._gross], minlength=count + 1).astype(float),
            entropy=entropy / np.maximum(voxels, 1),
            organ_errors={
                organ.key: count_inside((self._labels == organ.label) != (self._true == organ.label))
                for organ in self.wrong_organs
            },
        )


def measure_orders(truth: ReviewScorer, first: Sequence[int] = FIRST) -> list[ReviewRecall]:
    """What each order reaches with its first findings; ``random`` is the mean over 200 permutations."""
    ours, entropy = truth.measure_review_findings(), truth.measure_entropy_findings()
    ranks = np.arange(1, ours.count + 1)
    orders = {
        OURS: (ours, [ranks]),
        "random": (ours, [np.random.default_rng(seed).permutation(ranks) for seed in range(_SHUFFLES)]),
        "size": (ours, [_argsort_descending(ours.ml[1:])]),
        "entropy, own findings": (entropy, [np.arange(1, entropy.count + 1)]),
        "entropy, same findings": (ours, [_argsort_descending(ours.entropy[1:])]),
    }
    found = []
    for name in ORDERS:
        contents, permutations = orders[name]
        for number in first:
            budget = float(ours.ml[ranks[:number]].sum())
            rows = np.array([_measure_order(contents, order, number, budget) for order in permutations])
            found.append(ReviewRecall(truth.case, name, number, *rows.mean(axis=0).tolist()))
    return found


def _measure_order(contents: FindingErrors, order: NDArray[np.intp], number: int, budget_ml: float) -> list[float]:
    chosen = order[:number]
    organs = [amounts[chosen].sum() >= _REACHED * amounts.sum() for amounts in contents.organ_errors.values()]
    weights = _compute_budget_weights(contents.ml[order], budget_ml)
    return [
        float(contents.ml[chosen].sum()),
        _divide_or_nan(contents.errors[chosen].sum(), contents.errors.sum()),
        _divide_or_nan(contents.gross[chosen].sum(), contents.gross.sum()),
        float(np.mean(organs)) if organs else float("nan"),
        _divide_or_nan((contents.errors[order] * weights).sum(), contents.errors.sum()),
        _divide_or_nan((contents.gross[order] * weights).sum(), contents.gross.sum()),
    ]


def _compute_budget_weights(ml: Amounts, budget_ml: float) -> Amounts:
    """The fraction of each finding (0 to 1) that fits into the budget, in the given order."""
    before = np.concatenate([[0.0], np.cumsum(ml)[:-1]])
    return np.clip((budget_ml - before) / np.maximum(ml, 1e-9), 0.0, 1.0)


def _argsort_descending(values: Amounts) -> NDArray[np.intp]:
    return np.argsort(-values, kind="stable") + 1


def _divide_or_nan(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _filter_labels(labels: NDArray[np.uint8], known: Sequence[int]) -> NDArray[np.uint8]:
    """``labels`` with all labels except ``known`` replaced by background."""
    table = np.zeros(int(labels.max(initial=0)) + 1, np.uint8)
    kept = [label for label in known if label < len(table)]
    table[kept] = kept
    return table[labels]


def _find_gross_errors(labels: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Erroneous voxels that a border shift of one voxel does not explain.

    The truth has no neighbor with their label, or the result has no neighbor with their true label.
    """
    wrong = labels != truth
    shifted = np.zeros_like(wrong)
    for label in np.unique(labels[wrong]) if wrong.any() else ():
        shifted |= (labels == label) & dilate(truth == label)
    back = np.zeros_like(wrong)
    for label in np.unique(truth[wrong]) if wrong.any() else ():
        back |= (truth == label) & dilate(labels == label)
    return wrong & ~(shifted & back)


CURVE = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40)
"""Numbers of findings for the plot."""

_AMOUNTS = tuple(column.name for column in fields(ReviewRecall) if column.name not in ("case", "order", "first"))


@dataclass
class ReviewMeasurement:
    """The rows of all cases. ``cases`` holds a description of each, its volume of errors (ml) and its wrong organs."""

    rows: list[ReviewRecall] = field(default_factory=list)
    cases: list[dict[str, Any]] = field(default_factory=list)
    calibration: Calibration = field(default_factory=Calibration)

    def add(self, truth: ReviewScorer, **about: Any) -> None:
        """Measure one case; ``about`` becomes part of its description."""
        self.rows += measure_orders(truth, CURVE)
        self.calibration.add(truth.compute_calibration())
        self.cases.append(
            {
                "case": truth.case,
                **about,
                "error_ml": round(truth.error_ml, 1),
                "wrong_organs": [organ.key for organ in truth.wrong_organs],
            }
        )

    def mean(self, order: str, first: int) -> dict[str, float]:
        """Means over the cases for the first findings of an order; NaN if no case has anything to reach."""
        chosen = [row for row in self.rows if (row.order, row.first) == (order, first)]
        table = {name: np.array([getattr(row, name) for row in chosen], float) for name in _AMOUNTS}
        return {
            name: float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
            for name, values in table.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The cases, the calibration, and the means by order and number of findings.

        The means are fractions from 0 to 1, null if there is nothing to reach.
        """
        return {
            "cases": self.cases,
            "calibration": self.calibration.to_json(),
            "means": {
                order: {
                    str(first): {name: _round_or_none(value) for name, value in self.mean(order, first).items()}
                    for first in FIRST
                }
                for order in ORDERS
            },
        }

    def write_csv(self, path: Path) -> None:
        """Write one line for each case, order and number of findings."""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [column.name for column in fields(ReviewRecall)])
            writer.writeheader()
            for row in self.rows:
                values = asdict(row)
                writer.writerow(values | {name: _round_or_none(values[name]) for name in _AMOUNTS})


def measure_on_phantoms(
    measured: ReviewMeasurement,
    segmenter: Segmenter,
    count: int,
    first_seed: int = REPORT_SEEDS,
    progress: ProgressCallback | None = None,
) -> None:
    """Add ``count`` phantoms unlike those of training to ``measured``."""
    for index in range(count):
        seed = first_seed + index
        phantom = generate_shifted_scan_phantom(seed)
        add_case(measured, segmenter, f"phantom {seed}", phantom.ct, phantom.labels, **asdict(draw_shifted_scan(seed)))
        if progress is not None:
            progress((index + 1) / count, f"Phantom {index + 1} of {count}")


def add_case(
    measured: ReviewMeasurement,
    segmenter: Segmenter,
    case: str,
    ct: sitk.Image,
    truth: sitk.Image,
    known: Sequence[int] | None = None,
    **about: Any,
) -> None:
    """Segment ``ct`` and measure its review against ``truth`` on the same grid; ``known`` as in ``ReviewScorer``."""
    result = segmenter.segment(ct, SegmentOptions(review=True))
    places = len(result.review.review.findings) if result.review else 0
    measured.add(ReviewScorer(case, result, truth, segmenter.vocabulary, known), **about, places=places)


def _round_or_none(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None
