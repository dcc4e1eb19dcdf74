"""Correction with clicks through the real worker process, which needs no PyTorch for it."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.imaging.writers import write_image
from dcaseg.organs import AMOS
from dcaseg.worker.protocol import Correct, Corrected, Devices, Failure, encode
from scene_case import BOXES, small_ct, small_labels
from worker_client import Worker, worker_environment

SPLEEN = AMOS.by_key["spleen"].label
NO_TORCH = "import sys; sys.modules['torch'] = None\n"


@pytest.fixture
def worker(tmp_path):
    """A worker on a computer without PyTorch."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "sitecustomize.py").write_text(NO_TORCH, encoding="utf-8")
    worker = Worker(worker_environment(tmp_path / "path"))
    worker.next_event()
    yield worker
    worker.close()


@pytest.fixture
def request_open(tmp_path):
    """The request to open a case whose spleen is half missing."""
    labels = sitk.GetArrayFromImage(small_labels())
    z, _y, x = BOXES["spleen"]
    labels[z, 18:, x][labels[z, 18:, x] == SPLEEN] = 0
    image = sitk.GetImageFromArray(labels)
    image.CopyInformation(small_labels())
    write_image(small_ct(), tmp_path / "ct.nrrd")
    write_image(image, tmp_path / "labels.nrrd")
    return {
        **{"type": "open", "ct": str(tmp_path / "ct.nrrd"), "labels": str(tmp_path / "labels.nrrd")},
        **{"names": {str(SPLEEN): "spleen"}, "titles": {str(SPLEEN): "Milz"}},
    }


def ask(worker, number, action):
    worker.write(encode(Correct(str(number), action)))
    answer = worker.next_event()
    assert answer.id == str(number)
    return answer


def test_clicks_are_answered_in_order_without_pytorch_and_without_a_model(worker, request_open, tmp_path):
    opened = ask(worker, 1, request_open)
    assert isinstance(opened, Corrected) and opened.answer["size"] == [40, 34, 26]
    x, y, z = small_ct().TransformIndexToPhysicalPoint((30, 21, 16))
    patch = tmp_path / "patch.nrrd"
    stroke = {
        **{"type": "stroke", "session": opened.answer["session"], "label": SPLEEN, "add": True},
        **{"points": [[-x, -y, z]], "patch": str(patch)},
    }
    first = ask(worker, 2, stroke)
    assert isinstance(first, Corrected) and first.answer["added"] > 80 and first.answer["strokes"] == 1
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(patch))) == SPLEEN).sum() > first.answer["added"]
    locked = ask(worker, 3, {**stroke, "locked": [SPLEEN]})
    assert isinstance(locked, Failure) and "Milz is locked" in locked.problem
    assert ask(worker, 4, {"type": "close", "session": opened.answer["session"]}) == Corrected("4", {})
    closed = ask(worker, 5, stroke)
    assert isinstance(closed, Failure) and "session is closed" in closed.problem
    # What needs PyTorch says so, as before.
    worker.write(encode(Devices("6")))
    assert "'torch' is missing" in worker.next_event().problem


def test_a_damaged_request_is_answered_and_the_worker_stays(worker, request_open):
    for action in ({}, {"type": "open"}, {"type": "open", "ct": "/none.nrrd", "labels": "/none.nrrd"}):
        assert isinstance(ask(worker, 1, action), Failure)
    assert isinstance(ask(worker, 2, request_open), Corrected)
    assert np.array_equal(small_ct().GetSize(), ask(worker, 3, request_open).answer["size"])
