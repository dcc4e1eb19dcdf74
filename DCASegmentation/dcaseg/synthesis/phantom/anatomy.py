"""Builds the anatomy of a person: all structures in order of priority, fitted to the person's organ volumes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .body import Body
from .organs import (
    PYLORUS,
    bladder,
    bowel,
    duodenum,
    esophagus,
    gallbladder,
    kidneys_and_adrenals,
    liver,
    pancreas,
    prostate_or_uterus,
    rectum,
    spleen,
    stomach,
)
from .person import BodyWarp, Person, create_rng
from .shapes import Array
from .skeleton import muscles, skeleton
from .structure import (
    SampleGrid,
    Structure,
    compute_bounds_distance,
    compute_free_distance,
    create_empty_distance,
    place,
)
from .vessels import great_vessels, heart, lung_vessels, mesenteric_branches, visceral_vessels

_FIT_POINTS = 17.0
"""Number of sample points along the side of a cube with the organ's volume, for fitting its size."""


@dataclass(frozen=True)
class Anatomy:
    """A person's body, posture and structures. Where structures would overlap, earlier ones have priority."""

    person: Person
    body: Body
    posture: BodyWarp
    structures: tuple[Structure, ...]

    @classmethod
    def from_person(cls, person: Person, missing: frozenset[str] = frozenset()) -> Anatomy:
        """Build the anatomy and fit the surface of each organ to the person's volumes.

        ``missing`` holds the keys of removed organs. Later structures or fat take their space.
        """
        body, posture = Body(person), BodyWarp.from_person(person)
        placed: list[Structure] = []
        for structure in _create_structures(person):
            if structure.label and structure.key in missing:
                continue
            placed.append(_fit_volume(structure, placed, body, posture))
        return cls(person, body, posture, tuple(placed))


def _create_structures(person: Person) -> list[Structure]:
    random = create_rng(person.seed, "anatomy")
    return [
        *skeleton(),
        *muscles(),
        *great_vessels(person, random),
        *visceral_vessels(random),
        esophagus(person, random),
        heart(random),
        *kidneys_and_adrenals(person, random),
        duodenum(person, random, PYLORUS),
        pancreas(person, random),
        gallbladder(person, random),
        stomach(person, random),
        spleen(person, random),
        liver(person, random),
        rectum(random),
        *prostate_or_uterus(person, random),
        bladder(person, random),
        *bowel(person),
        mesenteric_branches(random),
        lung_vessels(random),
    ]


def _fit_volume(structure: Structure, placed: list[Structure], body: Body, posture: BodyWarp) -> Structure:
    """The structure with the offset for its target volume, as far as ``give`` and its neighbors allow."""
    if structure.volume_ml is None:
        return structure
    step = (structure.volume_ml * 1000.0) ** (1 / 3) / _FIT_POINTS
    box = structure.box
    low = tuple(v - structure.give for v in box[0])
    high = tuple(v + structure.give for v in box[1])
    block = SampleGrid.from_box((low, high), step, body)  # type: ignore[arg-type]
    occupied = create_empty_distance(block)
    for earlier in placed:
        place(earlier, block, occupied)
    everywhere = (slice(0, block.x.shape[0]), slice(0, block.x.shape[1]), slice(0, block.x.shape[2]))
    free = compute_free_distance(structure, block, everywhere)
    allowed = compute_bounds_distance(structure, block, everywhere, occupied) < 0
    allowed &= posture.is_scanned(block.z)
    weight = np.float32(step**3 / 1000.0) * _compute_volume_factor(block, posture)[allowed]
    candidates = free[allowed]
    order = np.argsort(candidates)
    volume_ml = np.cumsum(weight[order], dtype=np.float64)
    last = min(int(np.searchsorted(volume_ml, structure.volume_ml)), order.size - 1)
    return replace(structure, offset=float(np.clip(candidates[order[last]], -structure.give, structure.give)))


def _compute_volume_factor(block: SampleGrid, posture: BodyWarp) -> Array:
    """The posture's volume factor at the points of a block, computed at every third point and repeated."""
    thin = (slice(None, None, 3),) * 3
    factor = posture.compute_volume_factor(block.x[thin], block.y[thin], block.z[thin])
    for axis, count in enumerate(block.x.shape):
        factor = factor.repeat(3, axis=axis).take(np.arange(count), axis=axis)
    return factor
