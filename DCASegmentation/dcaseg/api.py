"""The Python API: ``import dcaseg``, then ``dcaseg.segment("ct.nii.gz")``.

A CT can be a path (NIfTI, NRRD, MetaImage, or a folder of DICOM files), a SimpleITK image in HU, or an array in HU with
an affine, like those of nibabel.
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
from .imaging.readers import prepare_ct_image
from .imaging.readers import read_ct as _read_ct
from .imaging.size_limits import require_allowed_size
from .imaging.writers import new_folder
from .inference.maps import EXPERTS
from .inference.options import SegmentOptions, drop_unavailable_maps
from .inference.pipeline import REQUEST, Job, is_result_file, make_segmenter, require_ct_elsewhere, write_result
from .inference.segmenter import Result
from .models.bundle import Bundle, load_default_model
from .models.store import find_bundle
from .organs import Vocabulary
from .review.builder import ReviewResult
from .types import ProgressCallback
from .user_folders import expand_user

CT = str | PathLike[str] | sitk.Image | ArrayLike
"""A CT: a path, a SimpleITK image in HU, or an array (x, y, z) in HU, for which an affine must be given, too."""

FINEST_LEVEL = 4
# Largest cosine of the angle between two axes of an affine that still count as perpendicular.
_MAX_AXIS_COSINE = 1e-3


def read_ct(path: str | PathLike[str], series: str | None = None) -> sitk.Image:
    """Read a CT from a file (NIfTI, NRRD, MetaImage) or from a folder with the DICOM files of a series.

    ``series`` selects one of several DICOM series, by UID or by the number that the error message lists it with. The
    image is 3D with one value per voxel: int16, or float32 if int16 would change a value. The values are not checked;
    ``segment`` refuses those that are not HU.

    Raises ImageError if the CT cannot be read, or if the file does not state its spacing or orientation.
    """
    return _read_ct(expand_user(fspath(path)), series)


def load_model(model: str | PathLike[str] | None = None) -> Bundle:
    """Load the model bundle with this name or in this folder, or the default model for None.

    ``metadata`` of the bundle has the organs, the spacing, the scores and the limits; ``network()`` returns the
    ``DCANet`` with its weights, in evaluation mode. Raises BundleError if there is no such bundle, or if it is damaged.

    Example::

        model = dcaseg.load_model("dca-abdomen")
        print(model.metadata.spacing, model.metadata.limits)
    """
    return load_default_model() if model is None else Bundle.load(find_bundle(fspath(model)))


@dataclass(frozen=True)
class Segmentation:
    """The result for one CT.

    All images are SimpleITK images; as arrays (``SimpleITK.GetArrayFromImage``) they have the axes (z, y, x). Images on
    the CT's grid have exactly its size, spacing, origin and direction. Images on the model's grid have the model's
    spacing and orientation, and cover the same body.
    """

    labels: sitk.Image
    """Labels, uint8 on the CT's grid: 0 is background, 1 to K are the organs of ``vocabulary``."""
    volumes_ml: dict[str, float]
    """Volume in ml of each organ that was requested, by its key such as ``"right_kidney"``. 0 if it was not found."""
    attention: dict[str, sitk.Image]
    """Attention to the experts ``"head"``, ``"medium"`` and ``"tail"``, float32 on the model's grid, at the finest
    level (DeB-9 in Fig. 3 of the paper). The maps sum to 1 in the part of the scan that the network ran on, and are 0
    in the air around it. Empty if no maps were requested."""
    dominant_expert: sitk.Image | None
    """The expert with the most attention, uint8 on the CT's grid: 1 head, 2 medium, 3 tail, and 0 where ``labels`` are
    0. None if no maps were requested."""
    uncertainty: sitk.Image | None
    """Entropy of the softmax divided by its maximum, 0 (certain) to 1, float32 on the model's grid. None if no maps
    were requested."""
    review: ReviewResult | None
    """The findings, regions that are most likely wrong. None if no review was requested."""
    vocabulary: Vocabulary
    """The organs by label."""
    warnings: tuple[str, ...]
    """Notes on the CT or the result that a user should see."""
    details: Result = field(repr=False)
    """All other results: mean HU of each organ, disagreement, time of each phase, attention of coarser levels."""
    _ct: sitk.Image = field(repr=False)
    _job: Job = field(repr=False)

    @property
    def labels_array(self) -> NDArray[np.uint8]:
        """The labels as an array (x, y, z), in the axis order of nibabel and of the input with an ``affine``."""
        array: NDArray[np.uint8] = sitk.GetArrayFromImage(self.labels).transpose(2, 1, 0)
        return array

    def mask(self, organ: str) -> sitk.Image:
        """Return the mask of one organ, given by key or name (``"liver"``, ``"Right kidney"``).

        It is uint8 on the CT's grid, 0 or 1. Raises UserError for an organ that the model does not have.
        """
        return self.labels == self.vocabulary.find(organ).label

    def save(
        self, folder: str | PathLike[str], extension: str = ".nrrd", overwrite: bool = False, shared: bool = False
    ) -> Path:
        """Write labels, maps, tables and ``request.json`` into a new folder, like ``dca segment``. Returns the folder.

        ``extension`` is ``.nrrd``, ``.nii.gz``, ``.nii`` or ``.mha``. ``overwrite`` replaces the folder of an earlier
        result, but no folder with other files in it. Unless ``shared``, only the owner can read the folder. The folder
        appears only when it is complete. Raises OutputError if it exists or cannot be written.
        """
        job = replace(
            self._job, out=expand_user(fspath(folder)), extension=extension, overwrite=overwrite, shared=shared
        )
        if not job.called:
            require_ct_elsewhere([job.ct], job.out)
        with new_folder(
            job.out, overwrite, REQUEST, is_result_file, private=not shared, keep_finished=True
        ) as temporary:
            write_result(temporary, job, self._ct, self.details)
        return job.out


class Segmenter:
    """Segments any number of CTs with one model, which stays loaded.

    ``model`` is the name or the folder of a model bundle, or what ``load_model`` returned; None is the default model.
    ``device`` is ``auto``, ``cpu``, ``gpu``, ``cuda``, ``cuda:1`` or ``mps``. ``backend`` runs the network: ``eager``,
    ``openvino``, ``openvino-bf16``, ``compile`` or ``cuda-half``. ``auto`` measures once which is fastest on this
    computer, and ``measure`` repeats the measurement.

    Raises BundleError if the model cannot be used, and UserError if the device or the backend cannot be used here.

    Example::

        segmenter = dcaseg.Segmenter(device="cpu")
        for path in ("first.nii.gz", "second.nii.gz"):
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
        organs: str | Iterable[str] | None = None,
        maps: bool = True,
        review: bool = False,
        series: str | None = None,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Segmentation:
        """Segment one CT.

        ``ct`` is a path, a SimpleITK image in HU, or an array (x, y, z) in HU. Any orientation and spacing will do.

        - ``affine``: only for an array, and required there: the 4 x 4 matrix from voxel indices to RAS coordinates in
          mm, as in nibabel.
        - ``organs``: keys or names of the organs to segment, or one of them; None segments all.
        - ``maps``: also compute the attention, the dominant expert, the uncertainty and the disagreement, as far as
          the model has them.
        - ``review``: also list findings, the regions that are most likely wrong.
        - ``series``: selects one of several series in a DICOM folder, by number or UID.
        - ``progress(fraction, message)``: called during the work, with ``fraction`` from 0 to 1.
        - ``options``: other fields of ``dcaseg.inference.options.SegmentOptions``, such as ``overlap``.

        Raises ImageError if the CT cannot be read or is not a CT in HU, UserError for invalid options, and TypeError
        for an option that does not exist.

        Example::

            image = nibabel.load("ct.nii.gz")
            labels = segmenter.segment(image.get_fdata(), image.affine).labels_array
        """
        chosen: dict[str, Any] = {"entropy": maps, "dominant_expert": maps, "disagreement": maps, "review": review}
        chosen["attention_levels"] = (FINEST_LEVEL,) if maps else ()
        chosen["organs"] = None if organs is None else (organs,) if isinstance(organs, str) else tuple(organs)
        available, note = drop_unavailable_maps(SegmentOptions(**chosen), self.model.metadata.network)
        settings = replace(available, **options)
        settings.get_kept_labels(self.model.metadata.vocabulary)
        notes: list[str] = [note] if note else []
        image, source, name = _load_image(ct, affine, series, notes)
        notes += check_ct(image)
        result = self._segmenter.segment(image, settings, progress)
        result.warnings[:0] = notes
        job = Job(source, Path(), self.model, settings, self._device, series, backend=self._backend, called=name)
        finest_level = max(result.attention, default=None)
        return Segmentation(
            labels=result.labels,
            volumes_ml=result.volumes_ml,
            attention={} if finest_level is None else _sort_experts(result.attention[finest_level]),
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
    """Segment the organs in one abdominal CT. For several CTs, use a ``Segmenter``, which loads the model only once.

    ``model``, ``device`` and ``backend`` are the arguments of ``Segmenter``. All other arguments (``ct``, ``affine``,
    ``organs``, ``maps``, ``review``, ``series``, ``progress``, ...) and the errors are those of ``Segmenter.segment``.

    Example::

        import dcaseg

        result = dcaseg.segment("ct.nii.gz", organs=["liver", "spleen"])
        print(result.volumes_ml)
        result.save("result")
    """
    return Segmenter(model, device, backend).segment(ct, affine, **options)


def _sort_experts(maps: Mapping[str, sitk.Image]) -> dict[str, sitk.Image]:
    return {expert: maps[expert] for expert in EXPERTS if expert in maps}


# The others are vectors, complex numbers and run-length coded label maps, on some of which ITK ends the process.
_SCALARS = frozenset(
    (
        *(sitk.sitkInt8, sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkUInt16, sitk.sitkInt32, sitk.sitkUInt32),
        *(sitk.sitkInt64, sitk.sitkUInt64, sitk.sitkFloat32, sitk.sitkFloat64),
    )
)


def _load_image(ct: CT, affine: ArrayLike | None, series: str | None, notes: list[str]) -> tuple[sitk.Image, Path, str]:
    """Return the CT as an image in HU, its path, and a name for it in results if it has no path.

    Appends notes on the file to ``notes``. Raises ImageError.
    """
    if isinstance(ct, str | PathLike):
        if affine is not None:
            raise ImageError("A CT in a file has its own affine.", "Omit the affine.")
        path = expand_user(fspath(ct))
        # The working directory may be another one when the result is saved.
        return _read_ct(path, series, notes), path.absolute(), ""
    if isinstance(ct, sitk.Image):
        if affine is not None:
            raise ImageError("A SimpleITK image has its own affine.", "Omit the affine.")
        if ct.GetDimension() != 3 or ct.GetPixelID() not in _SCALARS:
            raise ImageError("The image is not a volume with one value per voxel.", "Use a CT volume in HU.")
        return prepare_ct_image(ct, "The image", notes), Path(), "an image in memory"
    image = _array_to_image(np.asarray(ct), affine)
    return prepare_ct_image(image, "The array", notes), Path(), "an array in memory"


def _array_to_image(array: NDArray[Any], affine: ArrayLike | None) -> sitk.Image:
    """Convert an array (x, y, z) with its RAS ``affine`` to an image. Raises ImageError if they do not fit a CT."""
    if affine is None:
        raise ImageError(
            "The CT is an array without an affine, so its spacing and orientation are unknown.",
            "Pass the 4 x 4 affine from voxel indices to RAS coordinates in mm (nibabel: image.affine).",
        )
    require_allowed_size(array.shape, "The array")
    matrix = np.asarray(affine, np.float64)
    if array.ndim != 3 or matrix.shape != (4, 4):
        raise ImageError(
            f"The array has {array.ndim} dimensions, and the affine has the shape {matrix.shape}.",
            "Pass an array (x, y, z) and a 4 x 4 affine.",
        )
    if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise ImageError(f"The array has the type {array.dtype}, not HU.", "Pass integers or real numbers in HU.")
    spacing = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not (spacing > 0).all():
        raise ImageError("The affine has an axis without length, or values that are not finite.", "Correct the affine.")
    direction = matrix[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > _MAX_AXIS_COSINE:
        raise ImageError("The axes of the affine are not at right angles.", "Resample the CT to a regular grid first.")
    to_lps = np.diag([-1.0, -1.0, 1.0])
    # SimpleITK does not support 16-bit floats, and needs the native byte order.
    dtype = np.float32 if array.dtype == np.float16 else array.dtype.newbyteorder("=")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0), dtype=dtype))
    image.SetSpacing([float(each) for each in spacing])
    image.SetDirection([float(each) for each in (to_lps @ direction).ravel()])
    image.SetOrigin([float(each) for each in to_lps @ matrix[:3, 3]])
    return image
