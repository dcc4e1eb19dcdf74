"""A CT given as a folder of DICOM files: which of them it is, and the DICOM SEG that refers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..bundle.metadata import Metadata
    from ..inference.result import Result

_NEEDED = ("pydicom", "highdicom")


@dataclass
class DicomCT:
    """Where the CT is to be read from; ``files`` are its slices in order where they are DICOM and known to be so.

    ``messages`` tells what was passed over, and what could not be written and why.
    """

    path: Path
    series: str | None = None
    files: tuple[Path, ...] = ()
    messages: list[str] = field(default_factory=list)

    def write_segmentation(self, folder: Path, result: Result, metadata: Metadata) -> None:
        """Write the labels as DICOM SEG into ``folder`` and compare it with them. Where that fails, whatever the
        reason, there is none, and a message says why."""
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            how = 'pip install "dca-segmentation[cohort]"'
            self.messages.append(
                f"segmentation.dcm was not written: it needs {' and '.join(missing)}. To have it: {how}"
            )
            return
        from ..dicom.segmentation import DICOM_SEG, Algorithm
        from ..dicom.segmentation_check import write_checked
        from ..job import optional

        with optional(DICOM_SEG, self.messages):
            algorithm = Algorithm.of_model(metadata.name, metadata.version, metadata.weights.sha256)
            write_checked(folder / DICOM_SEG, self.files, result.labels, metadata.vocabulary, algorithm)


@contextmanager
def opened(
    ct: Path, series: str | None, out: Path, progress: Callable[[float, str], None], resample: bool = False
) -> Iterator[DicomCT]:
    """Yields where to read ``ct`` from; for a folder of DICOM files, the one CT in it or the chosen ``series``.

    ``resample`` allows slices that are tilted or unevenly spaced. Raises ImageError.
    """
    if not ct.is_dir():
        yield DicomCT(ct, series)
        return
    from ..dicom.one_ct import find_one_ct
    from ..dicom.reading import gathered

    def looking(files: int) -> None:
        progress(0.0, f"Looking through the folder: {files} files")

    found = find_one_ct(ct, series, out, looking, resample)
    with gathered(found.files, found.name) as folder:
        yield DicomCT(folder, None, found.files, list(found.notes))
