"""The benchmark on real anatomies: synthetic CTs rendered from label maps of people, some of them only for testing.

The groups were fixed before any result: few labeled cases of two people, many unlabeled ones of four, and a test on two
people whose labels and images are never used for training. The CTs are synthetic, so scores on them do not carry over
to CTs of patients. The anatomies are real, so the organs are realistically hard to distinguish.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...training.sources import LabelMapFolder, SynthesizedCTs
from ...training.training_set import TrainingSet

NAME = "anatomies"

# Number of synthetic CTs for each label map, by group. Each folder contains a label map and a table of its names.
LABELED = {"labels_torso_male": 2, "labels_abdomen_large_male": 2}
UNLABELED = {
    "labels_torso_male": 4,
    "labels_abdomen_large_male": 4,
    "labels_torso_thin_male": 4,
    "labels_abdomen_average_male": 4,
}
VALIDATION = {"labels_torso_male": 1, "labels_abdomen_large_male": 1, "labels_abdomen_average_male": 2}
TEST = {"labels_bodyparts3d_male": 3, "labels_spl_atlas": 3}

# Far from the seeds of training and other tests. Each group has its own seeds.
_FIRST_SEEDS = {"labeled": 700_000, "unlabeled": 710_000, "validation": 720_000, "test": 730_000}


def make_anatomies_training_set(maps: Path) -> tuple[TrainingSet, TrainingSet, str]:
    """The training set, a set whose labeled cases are the test cases, and a description of both.

    ``maps`` contains a folder for each label map. Raises UserError with the names of missing folders.
    """
    missing = sorted(name for name in {*LABELED, *UNLABELED, *VALIDATION, *TEST} if not (maps / name).is_dir())
    if missing:
        raise UserError(
            f"{maps} does not contain {', '.join(missing)}.",
            "Add a folder of that name with a label map and a table of its names.",
        )
    training_set = TrainingSet(
        _make_sources(maps, LABELED, "labeled"),
        _make_sources(maps, UNLABELED, "unlabeled"),
        _make_sources(maps, VALIDATION, "validation"),
    )
    counts = [sum(group.values()) for group in (LABELED, UNLABELED, VALIDATION, TEST)]
    # A run is only resumed with the same description, so rewording it ends the runs of earlier versions.
    description = (
        f"synthetic CTs of real anatomies: {counts[0]} labeled CTs of {len(LABELED)} people, {counts[1]} unlabeled of "
        f"{len(UNLABELED)}, {counts[2]} for validation, {counts[3]} test CTs of {len(TEST)} other people"
    )
    return training_set, TrainingSet(_make_sources(maps, TEST, "test")), description


def _make_sources(maps: Path, counts: dict[str, int], group: str) -> tuple[SynthesizedCTs, ...]:
    first = _FIRST_SEEDS[group]
    return tuple(
        SynthesizedCTs((LabelMapFolder(str(maps / name)),), first + 1000 * index, count, scan_range="abdomen")
        for index, (name, count) in enumerate(counts.items())
    )
