"""Two pictures are concatenated into one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import OutputError
from dcaseg.rendering.layout import compute_left_height, concat_images


def plain(path: Path, columns: int, rows: int, color: tuple[int, int, int]) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(np.full((rows, columns, 3), color, np.uint8), isVector=True), str(path))
    return path


def test_pictures_are_side_by_side_unchanged_with_the_title_above_the_left_one(tmp_path):
    picture = plain(tmp_path / "picture.png", 300, 200, (0, 0, 255))
    height = compute_left_height(picture)
    concat_images(plain(tmp_path / "left.png", 80, height, (255, 0, 0)), "A title", picture)
    pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(picture)))[..., :3]
    assert pixels.shape[0] == 200
    assert (pixels[:, -300:] == (0, 0, 255)).all()
    assert (pixels[200 - 12 - height : 200 - 12, 12 : 12 + 80] == (255, 0, 0)).all()
    assert (pixels[:50, :100] < 100).any(), "the title"


def test_failure_to_replace_the_picture_is_reported(tmp_path, monkeypatch):
    picture = plain(tmp_path / "picture.png", 300, 200, (0, 0, 255))
    left = plain(tmp_path / "left.png", 80, 100, (255, 0, 0))

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    with pytest.raises(OutputError, match="disk is full"):
        concat_images(left, "", picture)
