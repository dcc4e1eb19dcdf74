"""Head, medium and tail organs from voxel counts (slide "DCA: Divide", Table 4)."""

from __future__ import annotations

import json
import math

import pytest

from dcaseg.errors import UserError
from dcaseg.method.log_gap import Partition, partition
from dcaseg.organs import AMOS

# Typical organ volumes in ml, not taken from a dataset.
TEXTBOOK_ML = {
    "Sp": 220, "RK": 165, "LK": 170, "Ga": 35, "Es": 20, "Li": 1500, "St": 385, "Ao": 100, "IVC": 75,
    "Pa": 85, "RAG": 5, "LAG": 6, "Du": 60, "Bl": 95, "P/U": 40,
}  # fmt: skip
LABEL = {organ.abbreviation: organ.label for organ in AMOS}
# Column order of Table 4: the ranking of AMOS, 5 % labeled.
TABLE_4 = ["Li", "St", "Sp", "LK", "RK", "Ao", "Bl", "Pa", "IVC", "Du", "P/U", "Ga", "Es", "LAG", "RAG"]


def textbook_counts(**factors: float) -> dict[int, int]:
    return {LABEL[key]: round(1000 * ml * factors.get(key, 1.0)) for key, ml in TEXTBOOK_ML.items()}


def organs_of(result: Partition) -> list[set[str]]:
    names = {label: key for key, label in LABEL.items()}
    return [{names[label] for label in group} for group in result.owners]


def test_textbook_volumes_separate_liver_and_adrenals_from_the_rest():
    result = partition(textbook_counts(), "sequential")

    head, medium, tail = organs_of(result)
    assert (head, tail) == ({"Li"}, {"LAG", "RAG"})
    assert len(medium) == 12
    assert result.breakpoints == (1, 13)


def test_a_larger_esophagus_changes_sequential_but_not_top2():
    counts = textbook_counts(Es=1.25)

    assert [len(group) for group in partition(counts, "sequential").owners] == [13, 1, 1]
    assert partition(counts, "top2").owners == partition(textbook_counts(), "sequential").owners


def test_proportions_and_gaps_match_the_slides():
    result = partition({1: 100, 2: 50, 3: 1000, 4: 10}, "sequential")

    assert result.ranking == (3, 1, 2, 4)
    assert result.counts == (1000, 100, 50, 10)
    assert result.proportions == pytest.approx([1000 / 1160, 100 / 1160, 50 / 1160, 10 / 1160])
    assert result.gaps == pytest.approx([math.log(10), math.log(2), math.log(5)])
    assert result.owners == ((3,), (1, 2), (4,))


def test_average_matches_the_groups_of_table_4():
    counts = {LABEL[key]: 1000 - rank for rank, key in enumerate(TABLE_4)}

    runs = [[LABEL[key] for key in TABLE_4[start : start + 5]] for start in (0, 5, 10)]
    assert [list(group) for group in partition(counts, "average").owners] == runs


@pytest.mark.parametrize(("n_classes", "sizes"), [(13, [5, 4, 4]), (14, [5, 5, 4]), (3, [1, 1, 1])])
def test_average_puts_extra_classes_in_the_first_groups(n_classes, sizes):
    counts = {label: 1000 - label for label in range(1, n_classes + 1)}

    assert [len(group) for group in partition(counts, "average").owners] == sizes


def test_fixed_thresholds_apply_to_proportions():
    result = partition({1: 800, 2: 100, 3: 92, 4: 8}, "fixed", head_above=0.1, tail_below=0.01)

    assert result.owners == ((1,), (2, 3), (4,)), "a share of exactly 10 % is not above 10 %"


def test_fixed_thresholds_warn_about_an_empty_group():
    result = partition({1: 500, 2: 300, 3: 200}, "fixed")

    assert result.owners == ((1, 2, 3), (), ())
    assert "The tail group is empty, so the network has no tail expert." in result.warnings


def test_balanced_respects_the_minimum_group_size():
    counts = textbook_counts()

    assert partition(counts, "balanced", min_size=1).owners == partition(counts, "top2").owners
    # Gaps before the classes 2 to 6: 9, 1, 2, 1, 8 (in powers of two); without a minimum the first and the last win.
    steep = {1: 2**21, 2: 2**12, 3: 2**11, 4: 2**9, 5: 2**8, 6: 1}
    assert partition(steep, "top2").owners == ((1,), (2, 3, 4, 5), (6,))
    assert partition(steep, "balanced", min_size=2).owners == ((1, 2), (3, 4), (5, 6))
    with pytest.raises(UserError, match="cannot form three groups of at least 6"):
        partition(counts, "balanced", min_size=6)


def test_manual_groups_are_kept_and_sorted_by_the_ranking():
    result = partition({1: 10, 2: 20, 3: 30, 4: 0}, "manual", groups=[[1, 3], [4], [2]])

    assert result.owners == ((3, 1), (4,), (2,))
    assert result.breakpoints is None


@pytest.mark.parametrize(
    ("groups", "problem"),
    [
        (None, "needs three groups"),
        ([[1], [2, 3]], "needs three groups"),
        ([[1], [2], [2, 3]], "Label 2 appears more than once"),
        ([[1], [2], [3, 9]], "Label 9 is not in the vocabulary"),
        ([[1], [2], []], "Label 3 is in no group"),
    ],
)
def test_invalid_manual_groups_are_rejected(groups, problem):
    with pytest.raises(UserError, match=problem):
        partition({1: 3, 2: 2, 3: 1}, "manual", groups=groups)


@pytest.mark.parametrize("mode", ["sequential", "top2", "balanced", "average"])
def test_a_class_without_voxels_goes_to_the_tail_with_a_warning(mode):
    counts = {1: 1000, 2: 0, 3: 90, 4: 80, 5: 7, 6: 6}

    result = partition(counts, mode, min_size=1, names={2: "Gallbladder"})

    assert result.ranking == (1, 3, 4, 5, 6)
    assert result.tail[-1] == 2
    assert result.absent == (2,)
    assert "Gallbladder has no voxels in the labeled volumes; it is in the tail group." in result.warnings
    without = partition({label: count for label, count in counts.items() if count}, mode, min_size=1)
    assert (result.gaps, result.breakpoints) == (without.gaps, without.breakpoints)


def test_equal_counts_are_ranked_by_label():
    result = partition({4: 10, 2: 10, 1: 500, 3: 100}, "top2")

    assert result.ranking == (1, 3, 2, 4)


def test_of_equal_gaps_the_first_is_used():
    # Each class is a third of the one before: log(P_j) - log(P_j+1) computed from proportions would differ in the
    # last bit from gap to gap.
    result = partition({label: 3 ** (10 - label) for label in range(1, 8)}, "sequential")

    assert result.breakpoints == (1, 2)


@pytest.mark.parametrize("mode", ["sequential", "top2", "balanced", "average"])
def test_one_class_becomes_head_and_two_become_head_and_tail(mode):
    assert partition({3: 10}, mode).owners == ((3,), (), ())
    assert partition({1: 5, 2: 50}, mode).owners == ((2,), (), (1,))


LARGEST_GAP_LAST = {1: 100, 2: 60, 3: 50, 4: 1}


def test_sequential_fails_without_a_second_gap():
    with pytest.raises(UserError, match="no second gap") as caught:
        partition(LARGEST_GAP_LAST, "sequential")
    assert "top2" in caught.value.remedy


def test_empty_tail_option_without_a_second_gap():
    result = partition(LARGEST_GAP_LAST, "sequential", no_second_gap="empty_tail")

    assert result.owners == ((1, 2, 3), (4,), ())
    assert result.breakpoints == (3, 4)


def test_guarded_excludes_the_last_gap_from_the_first_search():
    result = partition(LARGEST_GAP_LAST, "sequential", no_second_gap="guarded")

    assert result.owners == ((1,), (2, 3), (4,))


def test_groups_with_one_class_or_nearly_all_classes_give_a_warning():
    warnings = partition(textbook_counts(), names={organ.label: organ.name for organ in AMOS}).warnings

    assert warnings == (
        "The head group has only one class: Liver.",
        "The medium group has 12 of 15 classes.",
    )


def test_an_even_partition_has_no_warnings():
    assert partition({1: 900, 2: 800, 3: 90, 4: 80, 5: 7, 6: 6}).warnings == ()


def test_label_maps_without_any_organ_are_refused():
    for counts in ({}, {1: 0, 2: 0}):
        with pytest.raises(UserError, match="contain no organ"):
            partition(counts)


def test_invalid_thresholds_modes_and_labels_are_rejected():
    with pytest.raises(UserError, match="thresholds"):
        partition({1: 3, 2: 2}, "fixed", head_above=0.01, tail_below=0.1)
    with pytest.raises(UserError, match="'median' is not a partition mode"):
        partition({1: 3, 2: 2}, "median")
    with pytest.raises(UserError, match="background"):
        partition({0: 3, 1: 2})


@pytest.mark.parametrize("mode", ["sequential", "top2", "balanced", "fixed", "average"])
def test_a_partition_comes_back_from_json_exactly(mode):
    result = partition({**textbook_counts(), LABEL["Bl"]: 0}, mode)

    written = json.dumps(result.to_json())

    again = Partition.from_json(json.loads(written))
    assert again == result
    assert (again.proportions, again.gaps, again.breakpoints) == (result.proportions, result.gaps, result.breakpoints)


@pytest.mark.parametrize(
    "change",
    [
        {"head": [6, 7]},
        {"tail": []},
        {"counts": [1, 2]},
        {"mode": "median"},
        {"ranking": "Li"},
        {"ranking": [1, 2, 3]},
    ],
)
def test_json_without_a_valid_partition_is_rejected(change):
    data = partition(textbook_counts()).to_json()

    with pytest.raises(ValueError, match=r"label|mode|count"):
        Partition.from_json({**data, **change})
    del data["medium"]
    with pytest.raises(ValueError, match="not a partition"):
        Partition.from_json(data)
