"""Pictures of a case, a small and a large one: axial and coronal plane with the organs' contours."""

from __future__ import annotations

import io

import numpy as np
import SimpleITK as sitk
from PIL import Image

from ..figures.drawn_views import add_organs, draw_ct
from ..figures.planes import Plane, choose_planes
from ..organs import Vocabulary

HEIGHT, LARGE_HEIGHT = 200, 720
_GAP = 4
_QUALITY = 82


def pictures(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary) -> tuple[bytes, bytes]:
    """Two JPEGs, ``LARGE_HEIGHT`` and ``HEIGHT`` pixels high; the patient's right is on the left of both planes."""
    planes = choose_planes(ct, labels)
    large = np.hstack(
        [
            _view(ct, labels, vocabulary, planes["axial"]),
            np.zeros((LARGE_HEIGHT, _GAP * LARGE_HEIGHT // HEIGHT, 3)),
            _view(ct, labels, vocabulary, planes["coronal"]),
        ]
    )
    image = Image.fromarray(large.astype(np.uint8))
    width = round(image.width * HEIGHT / LARGE_HEIGHT)
    return _jpeg(image), _jpeg(image.resize((width, HEIGHT), Image.Resampling.LANCZOS))


def _view(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary, plane: Plane) -> np.ndarray:
    view = draw_ct(ct, plane, (round(LARGE_HEIGHT * plane.aspect), LARGE_HEIGHT))
    return add_organs(view, labels, vocabulary, plane, fill=0.12, thickness=3)


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
