"""The command that draws labeled CTs with what a model finds in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from matplotlib.image import imread

import overlay_picture


@pytest.mark.slow
def test_a_labeled_ct_is_drawn_beside_what_the_model_finds(small_bundle, coarse_phantom, tmp_path, monkeypatch):
    entry = {"image": str(coarse_phantom / "ct.nii.gz"), "label": str(coarse_phantom / "labels.nii.gz"), "unknown": [5]}
    (tmp_path / "list.json").write_text(json.dumps({"training": [], "validation": [entry]}))
    picture = tmp_path / "picture.png"
    arguments = [str(tmp_path / "list.json"), str(picture), "--bundle", str(small_bundle), "--labels", "Phantom"]
    monkeypatch.setattr("sys.argv", ["overlay_picture.py", *arguments])
    overlay_picture.main()
    pixels = imread(picture)[..., :3]
    assert np.unique((pixels * 255).astype(int).reshape(-1, 3), axis=0).shape[0] > 50
