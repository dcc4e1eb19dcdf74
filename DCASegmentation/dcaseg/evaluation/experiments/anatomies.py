"""The benchmark on real anatomies: synthetic CTs of label maps of people, some of whom no training sees.

Who is in which group was fixed before any result: few labelled cases of two people, many unlabelled ones of four, and a
test on two people of whom neither labels nor images were learned from. The CTs are synthetic, so scores on them are
no scores on CTs of patients; the anatomies are real, so the organs are as hard to tell apart as they are.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...training.sources import LabelMapFolder, Painted
from ...training.training_set import TrainingSet

NAME = "anatomies"

# Number of synthetic CTs of each label map, by group. A folder holds a label map and a table of its names.
LABELLED = {"labels_torso_male": 2, "labels_abdomen_large_male": 2}
UNLABELLED = {
    "labels_torso_male": 4,
    "labels_abdomen_large_male": 4,
    "labels_torso_thin_male": 4,
    "labels_abdomen_average_male": 4,
}
VALIDATION = {"labels_torso_male": 1, "labels_abdomen_large_male": 1, "labels_abdomen_average_male": 2}
TEST = {"labels_bodyparts3d_male": 3, "labels_spl_atlas": 3}

# Far from the seeds that training and other tests use; every group has people of its own.
_FIRST_SEEDS = {"labelled": 700_000, "unlabelled": 710_000, "validation": 720_000, "test": 730_000}


def anatomies_training_set(maps: Path) -> tuple[TrainingSet, TrainingSet, str]:
    """The cohort to train on, one whose labelled cases are the test, and what both are, in words.

    ``maps`` holds a folder for each label map. Raises UserError, naming the folders that are not there.
    """
    lacking = sorted(name for name in {*LABELLED, *UNLABELLED, *VALIDATION, *TEST} if not (maps / name).is_dir())
    if lacking:
        raise UserError(
            f"{maps} lacks {', '.join(lacking)}.",
            "The benchmark needs a folder of that name for each label map, with a label map and a table of its names.",
        )
    cohort = TrainingSet(
        _sources(maps, LABELLED, "labelled"),
        _sources(maps, UNLABELLED, "unlabelled"),
        _sources(maps, VALIDATION, "validation"),
    )
    counts = [sum(group.values()) for group in (LABELLED, UNLABELLED, VALIDATION, TEST)]
    described = (
        f"synthetic CTs of real anatomies: {counts[0]} labelled of {len(LABELLED)} people, {counts[1]} unlabelled of "
        f"{len(UNLABELLED)}, {counts[2]} to validate, {counts[3]} to test of {len(TEST)} people never seen"
    )
    return cohort, TrainingSet(_sources(maps, TEST, "test")), described


def _sources(maps: Path, counts: dict[str, int], group: str) -> tuple[Painted, ...]:
    first = _FIRST_SEEDS[group]
    return tuple(
        Painted((LabelMapFolder(str(maps / name)),), first + 1000 * index, count)
        for index, (name, count) in enumerate(counts.items())
    )
