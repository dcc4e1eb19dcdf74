"""A small picture of a case: axial and coronal plane with the organs' contours."""

from __future__ import annotations

import io

import numpy as np
import SimpleITK as sitk
from PIL import Image

from ..figures.drawn_views import add_organs, draw_ct
from ..figures.planes import choose_planes
from ..organs import Vocabulary

HEIGHT = 200
_GAP = 4
_QUALITY = 82


def thumbnail(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary) -> bytes:
    """JPEG, ``HEIGHT`` pixels high; the patient's right is on the left of both planes."""
    planes = choose_planes(ct, labels)
    views = []
    for name in ("axial", "coronal"):
        plane = planes[name]
        view = draw_ct(ct, plane, (round(HEIGHT * plane.aspect), HEIGHT))
        views += [add_organs(view, labels, vocabulary, plane, fill=0.12, thickness=1), np.zeros((HEIGHT, _GAP, 3))]
    stream = io.BytesIO()
    Image.fromarray(np.hstack(views[:-1]).astype(np.uint8)).save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
