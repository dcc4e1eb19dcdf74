"""The review of a segmentation: collecting evidence from planes, and building findings on the CT's grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import SimpleITK as sitk

from ..imaging.grid import Grid, get_canonical_view
from ..inference.label_resampling import LabelResampler, NearestResampler
from ..inference.measurements import OrganMeasurement, compute_bounding_boxes
from ..inference.options import SegmentOptions
from ..inference.planes import Plane
from ..inference.postprocessing import remove_islands
from ..method.network import DCANet
from ..organs import Vocabulary
from ..types import Box
from .evidence import Bytes, Evidence
from .findings import find
from .ranking import NO_SUGGESTION, Candidate, Candidates, rank_candidates
from .regions import Mask, ReviewOptions
from .schema import Alternative, Finding, OrganNote, Point, Review

# A suggestion that changes less than this is not worth a click.
_MIN_SUGGESTION_ML = 0.2
_MIN_NAMED_ML = 0.05


@dataclass(frozen=True)
class ReviewResult:
    """The review of a segmentation.

    ``review`` is the list of findings. Images on the CT's grid (uint8): ``ranks`` holds the rank of each voxel's
    finding, 0 elsewhere; ``alternative`` the labels with all suggestions accepted. ``evidence``, on the model's
    ``grid``, is what the review was built from.
    """

    review: Review
    ranks: sitk.Image
    alternative: sitk.Image
    evidence: Evidence
    grid: Grid


def make_review(
    evidence: Evidence,
    labels: Bytes,
    other_labels: Bytes | None,
    ct: Grid,
    grid: Grid,
    measurements: tuple[OrganMeasurement, ...],
    owners: Sequence[Sequence[int]],
    other_is_experts: bool = True,
    options: ReviewOptions = ReviewOptions(),  # noqa: B008 - frozen
) -> ReviewResult:
    """Build the review.

    ``labels`` (z, y, x) are the result on the grid ``ct``; ``other_labels`` (z, y, x) those of the other prediction,
    None without one; they are overwritten. ``evidence`` lies on the model grid ``grid``. ``measurements`` are those of
    ``labels``. ``owners`` are the labels of the head, medium and tail expert. ``other_is_experts`` says whether the
    other prediction is that of the stitched experts, or else the decoder's.
    """
    other_name = "experts" if other_is_experts else "decoder's probabilities"
    groups = {label: slot for slot, owned in enumerate(owners, start=1) for label in owned}
    anatomical = find(evidence, grid, measurements, options, other_name)
    candidates = rank_candidates(evidence, anatomical, groups, grid, options, other_name)
    candidates, ranks = on_ct(candidates, grid, ct)
    alternative = _make_suggestion(candidates, labels, other_labels, grid, ct)
    source = "experts" if other_is_experts else "decoder"
    boxes = compute_bounding_boxes(ranks)
    from_anatomy = set(np.unique(candidates.map[candidates.suggestions != NO_SUGGESTION]).tolist())
    findings = [
        _make_finding(
            rank,
            candidate,
            boxes[rank],
            ranks,
            alternative,
            labels,
            ct,
            grid,
            "anatomy" if candidate.number in from_anatomy else source,
            evidence.vocabulary,
        )
        for rank, candidate in enumerate(candidates.candidates, start=1)
    ]
    for finding in findings:
        if finding.alternative is None:
            box = boxes[finding.rank]
            np.copyto(alternative[box], labels[box], where=ranks[box] == finding.rank)
    notes = tuple(
        OrganNote(each.organ.key, each.organ.label, round(each.ml, 3), tuple(anatomical.notes[each.organ.key]))
        for each in measurements
        if each.organ.key in anatomical.notes
    )
    review = Review(evidence.vocabulary.name, _get_geometry(ct), tuple(findings), notes)
    return ReviewResult(review, ct.make_image(ranks), ct.make_image(alternative), evidence, grid)


def on_ct(candidates: Candidates, grid: Grid, ct: Grid) -> tuple[Candidates, Bytes]:
    """Return the candidates that have voxels on the grid ``ct``, renumbered, and their map (z, y, x) on that grid.

    On a CT coarser than the model grid, a small finding may have no voxel.
    """
    nearest = NearestResampler(grid, ct)
    present = set(np.unique(nearest.select_sampled_voxels(candidates.map)))
    kept = [candidate for candidate in candidates.candidates if candidate.number in present]
    numbers = np.zeros(256, np.uint8)
    for number, candidate in enumerate(kept, start=1):
        numbers[candidate.number] = number
    renumbered = tuple(replace(candidate, number=number) for number, candidate in enumerate(kept, start=1))
    candidates = replace(candidates, candidates=renumbered, map=numbers[candidates.map])
    return candidates, nearest.on_ct(candidates.map, ct)


def _make_suggestion(candidates: Candidates, labels: Bytes, other_labels: Bytes | None, grid: Grid, ct: Grid) -> Bytes:
    """Return ``labels`` with the other prediction's labels within findings, overwritten by anatomy's suggestions."""
    nearest = NearestResampler(grid, ct)
    alternative = np.empty_like(labels) if other_labels is None else other_labels
    has_finding = np.any(candidates.map, axis=(1, 2))
    has_suggestion = np.any(candidates.suggestions != NO_SUGGESTION, axis=(1, 2))
    views = (nearest.transpose_to_model(each) for each in (alternative, labels))
    for out, label, z in zip(*views, nearest.indices[0], strict=True):
        if other_labels is None or not has_finding[z]:
            out[...] = label
        else:
            np.copyto(out, label, where=nearest.resample_plane(candidates.map, z) == 0)
        if has_suggestion[z]:
            anatomy = nearest.resample_plane(candidates.suggestions, z)
            # Only remove labels or fill background: at the border the labels on the finer grid are more exact.
            applies = (anatomy != NO_SUGGESTION) & ((anatomy == 0) | (label == 0))
            np.copyto(out, anatomy, where=applies)
    return alternative


def _make_finding(
    rank: int,
    candidate: Candidate,
    box: Box,
    ranks: Bytes,
    alternative: Bytes,
    labels: Bytes,
    ct: Grid,
    grid: Grid,
    source: str,
    vocabulary: Vocabulary,
) -> Finding:
    inside = ranks[box] == rank
    organ = candidate.organs[0]
    ml = float(np.count_nonzero(inside)) * ct.volume_ml_per_voxel
    first = np.array([part.start for part in reversed(box)])
    last = np.array([part.stop - 1 for part in reversed(box)])
    corners = np.array([_convert_to_mm(ct, np.where(pick, last + 0.5, first - 0.5)) for pick in np.ndindex(2, 2, 2)])
    return Finding(
        rank=rank,
        organ=organ.key,
        label=organ.label,
        name=organ.name,
        score=round(candidate.score, 4),
        expected_wrong_ml=round(min(candidate.expected_wrong_ml, ml), 4),
        ml=round(ml, 4),
        position_mm=_find_position(candidate, inside, first, ct, grid),
        box_mm=(_round_point(corners.min(axis=0)), _round_point(corners.max(axis=0))),
        box_voxels=(tuple(first.tolist()), tuple(last.tolist())),
        reasons=candidate.reasons,
        others=tuple(organ.key for organ in candidate.organs[1:]),
        alternative=_describe_alternative(alternative[box][inside], labels[box][inside], ct, source, vocabulary),
    )


def _find_position(candidate: Candidate, inside: Mask, first: np.ndarray, ct: Grid, grid: Grid) -> Point:
    """Return the center (mm, LPS) of the finding's voxel on the CT's grid that is nearest to the candidate's spot."""
    spot = _convert_to_mm(grid, np.array(candidate.spot[::-1]))
    voxels = np.argwhere(inside)[:, ::-1] + first
    index = np.linalg.solve(ct.axes * np.array(ct.spacing), spot - np.array(ct.origin))
    offsets = (voxels - index) * np.array(ct.spacing)
    return _round_point(_convert_to_mm(ct, voxels[int(np.round((offsets**2).sum(axis=1), 3).argmin())]))


def _describe_alternative(
    suggested: Bytes, labels: Bytes, ct: Grid, source: str, vocabulary: Vocabulary
) -> Alternative | None:
    """Describe the change from ``labels`` to ``suggested`` (voxels,) in a finding; None if it is too small."""
    changed = suggested[suggested != labels]
    if changed.size * ct.volume_ml_per_voxel < _MIN_SUGGESTION_ML:
        return None
    counts = np.bincount(changed, minlength=len(vocabulary) + 1)
    written = sorted(np.flatnonzero(counts).tolist(), key=lambda label: (-counts[label], label))
    ml = counts * ct.volume_ml_per_voxel
    names = ", ".join(
        f"{_format_name(vocabulary, label)} ({ml[label]:.1f} ml)" for label in written[:3] if ml[label] >= _MIN_NAMED_ML
    )
    prefix = {"experts": "The experts find", "decoder": "The decoder finds", "anatomy": "Suggested:"}
    return Alternative(source, tuple(written), round(float(ml.sum()), 4), f"{prefix[source]} {names}.")


def _format_name(vocabulary: Vocabulary, label: int) -> str:
    return "background" if label == 0 else vocabulary.by_label[label].name


def _convert_to_mm(grid: Grid, index: np.ndarray) -> np.ndarray:
    """Return the position in mm (LPS) of ``index`` (i, j, k), which may lie between voxels."""
    return np.array(grid.origin) + grid.axes @ (index * np.array(grid.spacing))


def _round_point(values: np.ndarray) -> Point:
    x, y, z = (round(float(value), 3) for value in values)
    return x, y, z


def _get_geometry(grid: Grid) -> dict[str, list[float] | list[int]]:
    return {
        "size": list(grid.size),
        "spacing_mm": list(grid.spacing),
        "origin_mm": list(grid.origin),
        "direction": list(grid.direction),
    }


def add_evidence_options(options: SegmentOptions, network: DCANet) -> SegmentOptions:
    """Return ``options`` that also request the evidence for the review which ``network`` can compute.

    That is both predictions, and the attention if the network has any. Without them the review uses less evidence.
    """
    if not options.review or network.aggregation is None:
        return options
    attends = network.options["fusion"] in ("dfam", "average")
    return replace(options, disagreement=True, dominant_expert=options.dominant_expert or attends)


class ReviewCollector:
    """Takes finished planes in order, then builds the review; a ``PlaneConsumer`` of ``inference.planes``.

    ``options`` are those of ``add_evidence_options``. ``owners`` are the labels of the head, medium and tail expert.
    ``ct`` and ``grid`` (the model grid, with axes ``orientation``) are the grids. In addition to the evidence on the
    model grid it holds the other prediction's labels on the CT's grid, one byte per voxel.
    """

    phase = "review"

    def __init__(
        self,
        options: SegmentOptions,
        vocabulary: Vocabulary,
        owners: Sequence[Sequence[int]],
        ct: Grid,
        grid: Grid,
        orientation: str,
    ) -> None:
        kept = options.get_kept_labels(vocabulary)
        slots = [slot for slot, owned in enumerate(owners) if owned]
        self._owners = owners
        self._keep_islands = options.keep_islands
        self._ct, self._grid = ct, grid
        self._other_is_experts = options.output == "aggregated"
        self._evidence = Evidence(
            grid.shape, vocabulary, slots, options.disagreement, bool(options.levels_needed), kept
        )
        self._other: Bytes | None = None
        if options.disagreement:
            self._other = np.zeros(ct.shape, np.uint8)
            self._on_ct = LabelResampler(get_canonical_view(self._other, ct, orientation), ct, grid, kept)

    def take(self, plane: Plane) -> None:
        """Take the next plane."""
        if plane.computed:
            self._evidence.add(plane)
        if self._other is not None:
            other = plane.other if plane.computed else plane.probabilities
            if other is not None:
                self._on_ct.add(plane.z, other)

    def result(self, labels: Bytes, measurements: tuple[OrganMeasurement, ...]) -> ReviewResult:
        """Return the review of the final ``labels`` (z, y, x) on the CT's grid and their ``measurements``."""
        if not self._keep_islands:
            self._evidence.remove_islands()
            if self._other is not None:
                remove_islands(self._other, self._evidence.vocabulary.compact)
        return make_review(
            self._evidence,
            labels,
            self._other,
            self._ct,
            self._grid,
            measurements,
            self._owners,
            self._other_is_experts,
        )
