"""The plot of the log proportions agrees with the partition."""

from __future__ import annotations

import pytest
from matplotlib.image import imread

from dcaseg.errors import OutputError
from dcaseg.evaluation.figures.log_gap import draw_log_gap, plot_log_gap
from dcaseg.method.log_gap import partition
from dcaseg.organs import AMOS

# Head: liver. Medium: spleen and kidneys. Tail: adrenals. The gallbladder has no voxels.
COUNTS = {6: 8000, 1: 900, 2: 800, 3: 700, 11: 30, 12: 20, 4: 0}


@pytest.fixture
def axes():
    return plot_log_gap(partition(COUNTS), AMOS).axes[0]


def test_organs_are_sorted_by_volume_with_absent_organs_last(axes):
    names = [label.get_text() for label in axes.get_xticklabels()]

    assert names[:4] == ["Liver", "Spleen", "Right kidney", "Left kidney"]
    assert names[4:] == ["Right adrenal gland", "Left adrenal gland", "Gallbladder"]
    assert [text.get_position()[0] for text in axes.texts if text.get_text() == "no voxels"] == [6]


def test_each_group_has_a_color_and_shows_the_shares_of_its_organs(axes):
    groups = {points.get_label(): points for points in axes.collections}

    assert list(groups) == ["Head (1 organ)", "Medium (3 organs)", "Tail (3 organs)"]
    assert len({tuple(points.get_facecolor()[0]) for points in groups.values()}) == 3
    total = sum(COUNTS.values())
    shares = groups["Medium (3 organs)"].get_offsets()[:, 1]
    assert list(shares) == pytest.approx([900 / total, 800 / total, 700 / total])
    assert axes.get_yscale() == "log"


def test_the_two_gaps_are_marked_between_the_groups(axes):
    marked = [text for text in axes.texts if text.get_text().startswith("gap")]

    assert [text.get_text() for text in marked] == ["gap 2.18\n(8.9 times)", "gap 3.15\n(23.3 times)"]
    assert [text.xy[0] for text in marked] == [0.5, 3.5]


def test_no_gaps_are_marked_for_groups_that_are_not_consecutive():
    manual = partition(COUNTS, "manual", groups=[[1, 12], [6, 2], [3, 11, 4]])

    axes = plot_log_gap(manual, AMOS).axes[0]

    assert not [text for text in axes.texts if text.get_text().startswith("gap")]


@pytest.mark.parametrize("counts", [{6: 5}, {6: 5, 1: 2}, {organ.label: 2**organ.label for organ in AMOS}])
def test_a_plot_is_written_for_any_number_of_organs(counts, tmp_path):
    draw_log_gap(partition(counts), AMOS, tmp_path / "log_gap.png")

    picture = imread(tmp_path / "log_gap.png")
    assert min(picture.shape[:2]) > 500
    assert picture.std() > 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["log_gap.png"]


def test_an_unknown_format_or_missing_folder_is_rejected(tmp_path):
    with pytest.raises(OutputError, match=r"Use \.png, \.pdf, \.svg"):
        draw_log_gap(partition(COUNTS), AMOS, tmp_path / "log_gap.gif")
    with pytest.raises(OutputError, match="There is no folder"):
        draw_log_gap(partition(COUNTS), AMOS, tmp_path / "nowhere" / "log_gap.png")
