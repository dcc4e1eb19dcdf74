"""Fixtures for the tests of the worker: requests, and a CT whose phases last long enough to interrupt them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.worker.protocol import Segment


@pytest.fixture(scope="session")
def large_ct(coarse_phantom, tmp_path_factory) -> Path:
    """The coarse phantom on 1.5 x 1.5 x 2 mm with noise, compressed: reading and writing it take a while."""
    coarse = sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))
    array = sitk.GetArrayFromImage(coarse).repeat(4, axis=0).repeat(4, axis=1).repeat(4, axis=2)
    array += np.random.default_rng(0).integers(-20, 20, array.shape, dtype=array.dtype)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing([side / 4 for side in coarse.GetSpacing()])
    path = tmp_path_factory.mktemp("large") / "ct.nii.gz"
    sitk.WriteImage(image, str(path))
    return path


@pytest.fixture
def request_for(small_bundle, coarse_phantom, tmp_path) -> Callable[..., Segment]:
    """Makes the request of a quick run on the CPU into tmp_path/result, with these fields changed."""

    def make(run_id: str = "1", **changes: Any) -> Segment:
        fields: dict[str, Any] = {
            "ct": str(coarse_phantom / "ct.nii.gz"),
            "out": str(tmp_path / "result"),
            "bundle": str(small_bundle),
            "device": "cpu",
            "options": {"overlap": 0.0},
        }
        return Segment(run_id, **{**fields, **changes})

    return make
