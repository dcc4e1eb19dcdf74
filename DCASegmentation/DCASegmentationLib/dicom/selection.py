"""Which series are axial CT volumes of a patient as scanned, and why another is not."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..imaging.dicom_header import CT_IMAGE, ENHANCED_CT
from ..imaging.dicom_slices import is_localizer, without_strays
from .headers import Header
from .series import Series

# Value 4 of the image type of a multi-energy CT image (DICOM PS3.3 C.8.15.3.7), and vendors' words for the same.
_ENERGY = re.compile(
    r"^(VMI|MAT_.*|EFF_ATOMIC_NUM|ELECTRON_DENSITY|VNC|VUE|.*IODINE.*|.*MONOENERG.*|.*VIRTUAL.*MONO.*|.*MATERIAL.*"
    r"|.*EFFECTIVE.?Z.*|DE.?MAP.*|RHO.?Z|GSI.*)$"
)
_HU = ("", "HU", "US")
# The slice normal may lean so far from the patient's long axis, as in a scan of a spine.
_AXIAL_COSINE = np.cos(np.radians(30.0))


@dataclass(frozen=True)
class Rules:
    """What is taken: series of at least ``fewest_slices``, those computed from others only if ``derived``, those with
    tilted or uneven slices only if they may be resampled (``resample``)."""

    fewest_slices: int = 20
    derived: bool = False
    resample: bool = False


@dataclass(frozen=True)
class Selection:
    """The images to use of a series, none where it is passed over for ``reason``. ``notes`` tell what was left out."""

    images: tuple[Header, ...]
    reason: str = ""
    notes: tuple[str, ...] = ()


def select(series: Series, rules: Rules) -> Selection:
    """The images of ``series`` that make up a CT volume; the first reason against them, if there is one."""
    likely = without_strays(series.images)
    # Where most are no slices, what they are is the reason.
    scan = tuple(likely if 2 * len(likely) > len(series.images) else series.images)
    scan = tuple(image for image in scan if not is_localizer(image))
    reason = _against(scan, rules)
    if reason:
        return Selection((), reason)
    left = [image for image in series.images if image not in scan]
    localizers = sum(map(is_localizer, left))
    others = len(left) - localizers
    notes = []
    if localizers:
        notes.append(f"{localizers} localizer{'s' if localizers > 1 else ''} among the slices left out")
    if others:
        notes.append(f"{others} image{'s' if others > 1 else ''} among the slices left out: dose pages or the like")
    if series.note:
        notes.append(series.note)
    if any(image.lossy for image in scan):
        notes.append("its images were compressed with loss")
    return Selection(scan, notes=tuple(notes))


def _against(scan: tuple[Header, ...], rules: Rules) -> str:
    modalities = sorted({image.modality for image in scan} - {"CT", ""})
    if modalities:
        return f"{', '.join(modalities)}, no CT"
    if not scan:
        return "localizer"
    if any(image.sop_class not in (CT_IMAGE, *ENHANCED_CT, "") for image in scan):
        return "secondary capture or another kind of object, no CT images"
    energy = sorted({value for image in scan for value in image.image_type if _ENERGY.match(value)})
    if energy:
        return f"dual-energy map ({', '.join(energy)})"
    units = sorted({image.rescale_type for image in scan} - set(_HU))
    if units:
        return f"dual-energy or other map: voxels in {', '.join(units)}, not in HU"
    derived = next((image for image in scan if _is_derived(image)), None)
    if derived is not None and not rules.derived:
        return f"derived ({chr(92).join(derived.image_type)})"
    # A scout among the slices, without being called one, is left out when they are stacked.
    placed = [image for image in scan if np.isfinite(image.axes).all()]
    if placed and 2 * sum(map(_is_axial, placed)) <= len(placed):
        return "not axial"
    slices = sum(image.frames for image in scan)
    if slices < rules.fewest_slices:
        return f"only {slices} slice{'s' if slices > 1 else ''}, fewer than {rules.fewest_slices}"
    return ""


def _is_derived(image: Header) -> bool:
    """Lossy compression alone also makes an image DERIVED (DICOM PS3.3 C.7.6.1.1.2), still a PRIMARY one."""
    values = image.image_type
    return "DERIVED" in values[:1] and not (image.lossy and "PRIMARY" in values[1:2])


def _is_axial(image: Header) -> bool:
    normal = np.cross(image.axes[:3], image.axes[3:])
    return bool(abs(normal[2]) >= _AXIAL_COSINE)
