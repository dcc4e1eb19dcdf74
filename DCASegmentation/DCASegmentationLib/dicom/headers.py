"""What the header of one DICOM file says: the reader of ``imaging``, under the names used here."""

from __future__ import annotations

from ..imaging.dicom_header import DicomHeader as Header
from ..imaging.dicom_header import is_dicom
from ..imaging.dicom_header import read_dicom_header as read_header

__all__ = ["Header", "is_dicom", "read_header"]
