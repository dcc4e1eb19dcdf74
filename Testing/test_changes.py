"""The changes between two label maps."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import ImageError
from dcaseg.imaging.label_comparison import compare_label_maps
from dcaseg.organs import AMOS

SPLEEN, LIVER = AMOS.by_key["spleen"], AMOS.by_key["liver"]


def label_map(*labels):
    image = sitk.GetImageFromArray(np.array(labels, np.uint8).reshape(1, 1, -1))
    image.SetSpacing((10.0, 10.0, 20.0))  # 2 ml a voxel
    return image


def by_key(before, after):
    return {change.organ.key: change for change in compare_label_maps(before, after, AMOS)}


def test_volumes_and_dice_before_and_after():
    s, v = SPLEEN.label, LIVER.label
    changes = by_key(label_map(s, s, s, v, v, 0), label_map(s, s, v, v, 0, s))
    spleen, liver = changes["spleen"], changes["liver"]
    assert (spleen.before_ml, spleen.after_ml, spleen.added_ml, spleen.removed_ml) == (6.0, 6.0, 2.0, 2.0)
    assert spleen.dice == pytest.approx(2 * 2 / 6)
    assert (liver.before_ml, liver.after_ml, liver.added_ml, liver.removed_ml) == (4.0, 4.0, 2.0, 2.0)
    assert liver.dice == pytest.approx(0.5)


def test_an_added_a_removed_and_an_absent_organ():
    changes = by_key(label_map(SPLEEN.label, 0), label_map(0, LIVER.label))
    assert (changes["spleen"].removed_ml, changes["spleen"].dice) == (2.0, 0.0)
    assert (changes["liver"].added_ml, changes["liver"].dice) == (2.0, 0.0)
    assert (changes["bladder"].dice, changes["bladder"].changed) == (None, False)


def test_equal_maps_have_no_changes():
    same = label_map(SPLEEN.label, LIVER.label, 0)
    assert not any(change.changed for change in compare_label_maps(same, same, AMOS))
    assert by_key(same, same)["spleen"].dice == 1.0


def test_different_grids_and_unknown_labels_are_rejected():
    other = label_map(1, 2)
    other.SetOrigin((5.0, 0.0, 0.0))
    with pytest.raises(ImageError, match="same grid"):
        compare_label_maps(label_map(1, 2), other, AMOS)
    with pytest.raises(ImageError, match="Label 16"):
        compare_label_maps(label_map(1, 2), label_map(1, 16), AMOS)
