"""The Python interface: ``import dcaseg``, then ``dcaseg.segment("ct.nii.gz")``.

A CT is given as a path (NIfTI, NRRD, MetaImage, or a folder of DICOM files), as a SimpleITK image in HU, or as an array
with an affine, as nibabel has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import ArrayLike, NDArray

from .errors import ImageError
from .imaging.ct_checks import check_ct
from .imaging.readers import read_ct as _read_ct
from .imaging.writers import new_folder
from .inference.maps import EXPERTS
from .inference.options import SegmentOptions
from .inference.pipeline import REQUEST, Job, make_segmenter, write_result
from .inference.segmenter import Result
from .models.bundle import Bundle, default_model
from .models.store import find_bundle
from .organs import Vocabulary
from .review.builder import ReviewResult
from .types import ProgressCallback

CT = str | PathLike[str] | sitk.Image | ArrayLike
"""A path, a SimpleITK image in HU, or an array (x, y, z) in HU, which needs an affine."""

FINEST_LEVEL = 4
# Smallest cosine between two axes of an affine that counts as shear.
_MAX_SHEAR = 1e-3


def read_ct(path: str | PathLike[str], series: str | None = None) -> sitk.Image:
    """The CT in a file or a folder of DICOM files, in HU. ``series``: number or UID of a DICOM series.

    Raises ImageError if it cannot be read, or if spacing or orientation are not stated in it.
    """
    return _read_ct(Path(fspath(path)), series)


def load_model(model: str | PathLike[str] | None = None) -> Bundle:
    """The model bundle with this name or in this folder; the default model for None. Raises BundleError."""
    return default_model() if model is None else Bundle.load(find_bundle(fspath(model)))


@dataclass(frozen=True)
class Segmentation:
    """The result for one CT.

    Images are SimpleITK images. Those on the CT's grid have exactly its size, spacing, origin and direction.
    """

    labels: sitk.Image
    """uint8 on the CT's grid: 0 is background, 1 to K the organs of ``vocabulary``."""
    volumes_ml: dict[str, float]
    """Volume of each organ in ml, by key such as ``"right_kidney"``; 0 if it was not found."""
    attention: dict[str, sitk.Image]
    """The attention of the experts ``"head"``, ``"medium"`` and ``"tail"``, float32 on the model's grid, summing to 1
    in every voxel (Fig. 3 of the paper, DeB-9). Empty if no maps were requested."""
    dominant_expert: sitk.Image | None
    """uint8 on the CT's grid: 0 background, 1 head, 2 medium, 3 tail: the expert with the most attention."""
    uncertainty: sitk.Image | None
    """Entropy of the softmax, normalized to 0..1, float32 on the model's grid."""
    review: ReviewResult | None
    """The findings most likely to be wrong, if they were requested."""
    vocabulary: Vocabulary
    """The organs by label."""
    warnings: tuple[str, ...]
    """What a user should know about the CT or the result. Show these."""
    details: Result = field(repr=False)
    """Everything else: mean HU, time of each phase, attention of the coarser levels."""
    _ct: sitk.Image = field(repr=False)
    _job: Job = field(repr=False)

    @property
    def labels_array(self) -> NDArray[np.uint8]:
        """The labels as an array (x, y, z), in the axis order of nibabel and of the ``affine`` that was given."""
        array: NDArray[np.uint8] = sitk.GetArrayFromImage(self.labels).transpose(2, 1, 0)
        return array

    def mask(self, organ: str) -> sitk.Image:
        """The mask of one organ (key or name), uint8 on the CT's grid, 0 and 1. Raises UserError for an unknown
        organ."""
        return self.labels == self.vocabulary.find(organ).label

    def save(
        self, folder: str | PathLike[str], extension: str = ".nrrd", overwrite: bool = False, shared: bool = False
    ) -> Path:
        """Write the folder that ``dca segment`` writes: labels, maps, tables, ``request.json``. Returns the folder.

        ``extension`` is ``.nrrd``, ``.nii.gz``, ``.nii`` or ``.mha``. ``overwrite`` replaces the folder of an earlier
        result and nothing else. Only the owner can read the folder unless it is ``shared``. The folder appears when it
        is complete. Raises OutputError if it exists or cannot be written.
        """
        job = replace(self._job, out=Path(fspath(folder)), extension=extension, overwrite=overwrite, shared=shared)
        with new_folder(job.out, overwrite=overwrite, recognized_by=REQUEST, private=not shared) as temporary:
            write_result(temporary, job, self._ct, self.details)
        return job.out


class Segmenter:
    """Segments CT after CT with one model, which stays loaded.

    ``model`` is the name or the folder of a model bundle (the default model for None), ``device`` one of ``auto``,
    ``cpu``, ``gpu``, ``cuda``, ``cuda:1`` and ``mps``, ``backend`` what runs the network (``auto`` takes the fastest on
    this computer). Raises BundleError for a model and UserError for a device or backend that cannot be used.

    Example::

        segmenter = dcaseg.Segmenter(device="cpu")
        for path in paths:
            print(segmenter.segment(path).volumes_ml["liver"])
    """

    def __init__(
        self, model: str | PathLike[str] | Bundle | None = None, device: str = "auto", backend: str = "auto"
    ) -> None:
        self.model = model if isinstance(model, Bundle) else load_model(model)
        self._device = device
        self._backend = backend
        self._segmenter = make_segmenter(self.model, device, backend)

    def segment(
        self,
        ct: CT,
        affine: ArrayLike | None = None,
        *,
        organs: Iterable[str] | None = None,
        maps: bool = True,
        review: bool = False,
        series: str | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Segmentation:
        """Segment one CT.

        ``ct`` is a path, a SimpleITK image in HU, or an array (x, y, z) in HU with its 4 x 4 ``affine`` from voxel
        indices to RAS coordinates in mm, as nibabel gives them. ``organs`` keeps these only (keys or names). ``maps``
        makes the attention of the experts, the dominant expert, and the uncertainty; ``review`` lists the findings most
        likely to be wrong. ``series`` picks a series of a DICOM folder. ``progress(fraction, message)`` is called as
        the work goes on. ``options`` are further fields of ``dcaseg.inference.options.SegmentOptions``, such as
        ``overlap``.

        Raises ImageError if the CT cannot be read or is not a CT in HU, UserError for options that do not fit.
        """
        chosen: dict[str, Any] = {"entropy": maps, "dominant_expert": maps, "disagreement": maps, "review": review}
        chosen["attention_levels"] = (FINEST_LEVEL,) if maps else ()
        chosen["organs"] = None if organs is None else tuple(organs)
        settings = SegmentOptions(**{**chosen, **options})
        settings.kept_labels(self.model.metadata.vocabulary)
        notes: list[str] = []
        image, source, name = _image_of(ct, affine, series, notes)
        notes += check_ct(image)
        result = self._segmenter.segment(image, settings, progress)
        result.warnings[:0] = notes
        job = Job(source, Path(), self.model, settings, self._device, series, runtime=self._backend, called=name)
        finest = max(result.attention, default=None)
        return Segmentation(
            labels=result.labels,
            volumes_ml=result.volumes_ml,
            attention={} if finest is None else _in_order(result.attention[finest]),
            dominant_expert=result.dominant_expert,
            uncertainty=result.entropy,
            review=result.review,
            vocabulary=self.model.metadata.vocabulary,
            warnings=tuple(result.warnings),
            details=result,
            _ct=image,
            _job=job,
        )


def segment(
    ct: CT,
    affine: ArrayLike | None = None,
    *,
    model: str | PathLike[str] | Bundle | None = None,
    device: str = "auto",
    backend: str = "auto",
    **options: Any,
) -> Segmentation:
    """Segment the organs of one abdominal CT. For several CTs, keep a ``Segmenter``, which loads the model once.

    ``model``, ``device`` and ``backend`` are those of ``Segmenter``; ``ct``, ``affine`` and all else (``organs``,
    ``maps``, ``review``, ``series``, ``progress``, ...) those of ``Segmenter.segment``, as are the errors.

    Example::

        import dcaseg

        result = dcaseg.segment("ct.nii.gz", organs=["liver", "spleen"])
        print(result.volumes_ml)
        result.save("result")
    """
    return Segmenter(model, device, backend).segment(ct, affine, **options)


def _in_order(maps: Mapping[str, sitk.Image]) -> dict[str, sitk.Image]:
    return {expert: maps[expert] for expert in EXPERTS if expert in maps}


def _image_of(ct: CT, affine: ArrayLike | None, series: str | None, notes: list[str]) -> tuple[sitk.Image, Path, str]:
    """The CT as an image in HU, where it came from, and its name in results where it came from no file."""
    if isinstance(ct, str | PathLike):
        if affine is not None:
            raise ImageError("An affine was given for a CT in a file.", "Leave it out: the file has its own.")
        path = Path(fspath(ct))
        return _read_ct(path, series, notes), path, ""
    if isinstance(ct, sitk.Image):
        if affine is not None:
            raise ImageError("An affine was given for an image.", "Leave it out: the image has its own geometry.")
        if ct.GetDimension() != 3 or ct.GetNumberOfComponentsPerPixel() != 1:
            raise ImageError("The image is not a volume with one value per voxel.", "Give a CT volume in HU.")
        return ct, Path(), "an image in memory"
    return _image_of_array(np.asarray(ct), affine), Path(), "an array in memory"


def _image_of_array(array: NDArray[Any], affine: ArrayLike | None) -> sitk.Image:
    """An image of an array (x, y, z) and its RAS ``affine``. Raises ImageError if they are not those of a CT."""
    if affine is None:
        raise ImageError(
            "The CT is an array without an affine, so its spacing and orientation are unknown.",
            "Give the 4 x 4 affine from voxel indices to RAS coordinates in mm (nibabel: image.affine).",
        )
    matrix = np.asarray(affine, np.float64)
    if array.ndim != 3 or matrix.shape != (4, 4):
        raise ImageError(
            f"The array has {array.ndim} dimensions and the affine the shape {matrix.shape}.",
            "Give an array (x, y, z) and a 4 x 4 affine.",
        )
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise ImageError(f"The array holds values of type {array.dtype}, not HU.", "Give numbers in HU.")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not (spacing > 0).all():
        raise ImageError("The affine has an axis without length, or values that are not numbers.", "Correct it.")
    direction = matrix[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _MAX_SHEAR:
        raise ImageError("The axes of the affine are not at right angles.", "Resample the CT to a regular grid first.")
    to_lps = np.diag([-1.0, -1.0, 1.0])
    # SimpleITK has no 16-bit floats, and computes on native byte order.
    kind = np.float32 if array.dtype == np.float16 else array.dtype.newbyteorder("=")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0), dtype=kind))
    image.SetSpacing([float(each) for each in spacing])
    image.SetDirection([float(each) for each in (to_lps @ direction).ravel()])
    image.SetOrigin([float(each) for each in to_lps @ matrix[:3, 3]])
    return image
