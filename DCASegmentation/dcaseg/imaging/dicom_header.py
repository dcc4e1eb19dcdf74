"""The header of one DICOM file, as far as it is needed to sort and read a CT. Voxels are not loaded.

The parser is our own rather than pydicom's, so that installations without pydicom read the same files: Part 10 files,
files that lost their preamble or meta information, and enhanced multi-frame images. For the encodings see DICOM PS3.5,
section 7.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .codestreams import HEADER_BYTES, require_stated_size

_PREAMBLE = 128
_MAGIC = b"DICM"
_IMPLICIT, _EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
# The transfer syntaxes of JPEG, JPEG-LS and JPEG 2000 that can be read. Their images all end with one marker, after
# which some programs write padding.
_JPEG = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91, 92, 93)}
_END_OF_IMAGE, _MAX_PADDING_BYTES = b"\xff\xd9", 16
_BIG_ENDIAN, _DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")

_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()
)
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ UC UN UR UT SV UV".split())
_UNDEFINED = 0xFFFFFFFF
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_FLOATING_PIXELS = (0x7FE00008, 0x7FE00009)
_PIXELS = (*_FLOATING_PIXELS, 0x7FE00010)
_MAX_VALUE_LENGTH = 1 << 16
_MAX_DEPTH = 12
_MAX_INFLATED_BYTES = 1 << 30

_TAGS = {
    "MediaStorageSOPClassUID": 0x00020002, "TransferSyntaxUID": 0x00020010,
    "SpecificCharacterSet": 0x00080005, "ImageType": 0x00080008, "SOPClassUID": 0x00080016,
    "SOPInstanceUID": 0x00080018, "StudyDate": 0x00080020, "AcquisitionTime": 0x00080032,
    "Modality": 0x00080060, "SeriesDescription": 0x0008103E,
    "PatientID": 0x00100020, "StudyInstanceUID": 0x0020000D, "SeriesInstanceUID": 0x0020000E,
    "AcquisitionNumber": 0x00200012, "ImagePositionPatient": 0x00200032, "ImageOrientationPatient": 0x00200037,
    "FrameOfReferenceUID": 0x00200052, "SamplesPerPixel": 0x00280002, "PhotometricInterpretation": 0x00280004,
    "NumberOfFrames": 0x00280008, "Rows": 0x00280010, "Columns": 0x00280011, "PixelSpacing": 0x00280030,
    "BitsAllocated": 0x00280100, "BitsStored": 0x00280101, "HighBit": 0x00280102, "PixelRepresentation": 0x00280103,
    "RescaleIntercept": 0x00281052, "RescaleSlope": 0x00281053, "RescaleType": 0x00281054,
    "LossyImageCompression": 0x00282110,
    # Functional groups of enhanced images, shared by all frames or one for each.
    "SharedFunctionalGroups": 0x52009229, "PerFrameFunctionalGroups": 0x52009230, "PlanePosition": 0x00209113,
    "PlaneOrientation": 0x00209116, "PixelMeasures": 0x00289110, "PixelValueTransformation": 0x00289145,
}  # fmt: skip
_WANTED = frozenset(_TAGS.values())
_SEQUENCES = frozenset(
    _TAGS[name]
    for name in (
        *("SharedFunctionalGroups", "PerFrameFunctionalGroups", "PlanePosition", "PlaneOrientation", "PixelMeasures"),
        "PixelValueTransformation",
    )
)
_CODECS = {
    "ISO_IR 100": "latin-1", "ISO_IR 101": "iso8859-2", "ISO_IR 109": "iso8859-3", "ISO_IR 110": "iso8859-4",
    "ISO_IR 144": "iso8859-5", "ISO_IR 127": "iso8859-6", "ISO_IR 126": "iso8859-7", "ISO_IR 138": "iso8859-8",
    "ISO_IR 148": "iso8859-9", "ISO_IR 203": "iso8859-15", "ISO_IR 13": "shift_jis", "ISO_IR 166": "tis-620",
    "ISO_IR 192": "utf-8", "GB18030": "gb18030", "GBK": "gbk", "ISO 2022 IR 87": "iso2022_jp",
    "ISO 2022 IR 149": "euc_kr", "ISO 2022 IR 58": "gb2312",
}  # fmt: skip

_Elements = dict[int, "bytes | list[_Elements]"]


@dataclass(frozen=True, slots=True)
class Frame:
    """The position of one plane of an image and its rescaling to HU; NaN or "" for values that the file does not state.

    ``position`` (mm, LPS) is the center of the first voxel, ``axes`` are the directions of increasing column and row
    index (six cosines), ``spacing`` is the distance between columns and between rows in mm (x, y). ``rescale_type`` is
    the unit of the rescaled values.
    """

    position: tuple[float, ...]
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    slope: float
    intercept: float
    rescale_type: str = ""


@dataclass(frozen=True, slots=True)
class Voxels:
    """How the voxels are stored: ``offset`` and ``bytes`` in the (inflated) file; ``bytes`` is None if compressed.

    ``allocated``, ``stored`` and ``high`` are DICOM's BitsAllocated, BitsStored and HighBit. ``floating`` says that the
    voxels are floating-point numbers.
    """

    offset: int
    bytes: int | None
    allocated: int
    stored: int
    high: int
    signed: bool
    big_endian: bool
    photometric: str
    floating: bool = False


@dataclass(frozen=True, slots=True)
class DicomHeader:
    """The header of one image. Texts are empty and numbers NaN or 0 where the file states nothing.

    ``planes`` holds one ``Frame`` for each frame of the image, so one for an ordinary slice. ``transfer_syntax`` is a
    UID. ``whole`` is False for a file without the meta information of DICOM Part 10.
    """

    file: str
    sop_class: str
    instance: str
    modality: str
    image_type: tuple[str, ...]
    lossy: bool
    patient: str
    study: str
    study_date: str
    series: str
    description: str
    acquisition: str
    acquisition_time: str
    frame_of_reference: str
    rows: int
    columns: int
    values_per_voxel: int
    planes: tuple[Frame, ...]
    transfer_syntax: str
    voxels: Voxels
    whole: bool

    @property
    def frames(self) -> int:
        """The number of planes in the image."""
        return len(self.planes)

    @property
    def position(self) -> tuple[float, ...]:
        """The position of the first plane in mm (LPS)."""
        return self.planes[0].position

    @property
    def axes(self) -> tuple[float, ...]:
        """The axes of the first plane (six cosines)."""
        return self.planes[0].axes

    @property
    def spacing(self) -> tuple[float, ...]:
        """The spacing of the first plane in mm (x, y)."""
        return self.planes[0].spacing


def is_dicom(path: Path) -> bool:
    """Whether the file begins like a DICOM data set, with or without preamble and meta information.

    Raises OSError if it cannot be read.
    """
    with path.open("rb") as stream:
        return _find_data_set_start(stream.read(_PREAMBLE + 16)) is not None


def read_dicom_header(path: Path) -> DicomHeader | None:
    """The header of a DICOM image; None if the file is not DICOM, or is DICOM without an image, such as a DICOMDIR.

    Raises OSError if the file cannot be read and ValueError, with the reason, if it is damaged.
    """
    with path.open("rb") as file:
        if _find_data_set_start(file.read(_PREAMBLE + 16)) is None:
            return None
        elements: _Elements = {}
        try:
            return _parse_header(path, file, elements)
        except (EOFError, struct.error, zlib.error) as error:
            if isinstance(error, EOFError) or _is_ct_class(elements):
                raise ValueError(str(error) or "its header ends too early") from None
            raise ValueError("its header cannot be read") from None


def open_data_set(path: Path) -> BinaryIO:
    """Open the file with its data set inflated, so that ``Voxels.offset`` applies. Raises OSError."""
    file = path.open("rb")
    try:
        elements: _Elements = {}
        stream, _, _, _ = _read_file_meta(file, elements)
    except BaseException:
        file.close()
        raise
    if stream is not file:
        file.close()
    return stream


def _parse_header(path: Path, file: BinaryIO, elements: _Elements) -> DicomHeader | None:
    stream, syntax, size, whole = _read_file_meta(file, elements)
    big_endian = syntax == _BIG_ENDIAN
    reader = _ElementReader(stream, size, syntax != _IMPLICIT, ">" if big_endian else "<")
    pixels = reader.read_into(elements)
    get = _Getter(elements, reader.order)
    rows, columns = get.count("Rows", 0), get.count("Columns", 0)
    sop_class = get.text("SOPClassUID") or get.text("MediaStorageSOPClassUID")
    if not rows or not columns:
        if sop_class in ("", CT_IMAGE, *ENHANCED_CT):
            raise ValueError("its header ends too early")
        return None
    if pixels is None:
        if _is_ct_class(elements):
            raise ValueError("it contains no voxels")
        return None
    planes = _parse_frames(elements, get)
    allocated = get.count("BitsAllocated", 16)
    offset, length = pixels
    values = max(get.count("SamplesPerPixel", 1), 1)
    if length is not None:
        needed = rows * columns * values * len(planes) * allocated // 8
        if offset + length > size or length < needed:
            raise ValueError(f"only {min(length, size - offset)} of {max(needed, length)} bytes of voxels are present")
    else:
        reader.require_fragments((columns, rows) if syntax in _JPEG else None)
    stored = get.count("BitsStored", allocated)
    return DicomHeader(
        file=str(path),
        sop_class=sop_class,
        instance=get.text("SOPInstanceUID"),
        modality=get.text("Modality"),
        image_type=tuple(value.upper() for value in get.text("ImageType").split("\\") if value),
        lossy=get.text("LossyImageCompression") == "01",
        patient=get.text("PatientID"),
        study=get.text("StudyInstanceUID"),
        study_date=get.text("StudyDate"),
        series=get.text("SeriesInstanceUID"),
        description=get.text("SeriesDescription"),
        acquisition=get.text("AcquisitionNumber"),
        acquisition_time=get.text("AcquisitionTime"),
        frame_of_reference=get.text("FrameOfReferenceUID"),
        rows=rows,
        columns=columns,
        values_per_voxel=values,
        planes=planes,
        transfer_syntax=syntax,
        voxels=Voxels(
            offset, length, allocated, stored, get.count("HighBit", stored - 1),
            get.count("PixelRepresentation", 0) == 1, big_endian, get.text("PhotometricInterpretation").upper(),
            reader.voxel_tag in _FLOATING_PIXELS,
        ),
        whole=whole,
    )  # fmt: skip


def _parse_frames(elements: _Elements, get: _Getter) -> tuple[Frame, ...]:
    """The frames of the image.

    A value in the frame's own functional groups takes precedence over the shared groups, and these over the top level
    of the header. Raises ValueError if a CT states two rescalings, of which other programs may use the other one.
    """
    shared = _get_first_item(elements, "SharedFunctionalGroups")
    each = elements.get(_TAGS["PerFrameFunctionalGroups"])
    count = get.count("NumberOfFrames", 1)
    groups: list[_Elements] = each if isinstance(each, list) else []
    if groups and len(groups) != count:
        raise ValueError(f"it states {count} frames but describes {len(groups)}")

    def parse_frame(own: _Elements) -> Frame:
        def stated(group: str, name: str) -> _Getter:
            sources = (_get_first_item(own, group), _get_first_item(shared, group), elements)
            return _Getter(next((source for source in sources if _TAGS[name] in source), {}), get.order)

        def numbers(group: str, name: str, wanted: int) -> tuple[float, ...]:
            return stated(group, name).numbers(name, wanted)

        return Frame(
            position=numbers("PlanePosition", "ImagePositionPatient", 3),
            axes=numbers("PlaneOrientation", "ImageOrientationPatient", 6),
            # DICOM states the distance between rows first.
            spacing=numbers("PixelMeasures", "PixelSpacing", 2)[::-1],
            slope=numbers("PixelValueTransformation", "RescaleSlope", 1)[0],
            intercept=numbers("PixelValueTransformation", "RescaleIntercept", 1)[0],
            rescale_type=stated("PixelValueTransformation", "RescaleType").text("RescaleType").upper(),
        )

    in_common = _parse_rescale(shared, get.order)
    if in_common and _is_ct_class(elements):
        for own in groups:
            if any(in_common.get(name, value) != value for name, value in _parse_rescale(own, get.order).items()):
                raise ValueError("it states two different rescale slopes or intercepts for the same frame")
    if groups:
        return tuple(parse_frame(own) for own in groups)
    return (parse_frame({}),) * max(count, 1)


def _parse_rescale(group: _Elements, order: str) -> dict[str, str]:
    """Slope and intercept, by name, as far as a functional group states them. As texts, NaN equals NaN."""
    source = _get_first_item(group, "PixelValueTransformation")
    names = [name for name in ("RescaleSlope", "RescaleIntercept") if _TAGS[name] in source]
    return {name: str(_Getter(source, order).numbers(name, 1)[0]) for name in names}


def _get_first_item(elements: _Elements, name: str) -> _Elements:
    items = elements.get(_TAGS[name])
    return items[0] if isinstance(items, list) and items else {}


def _is_ct_class(elements: _Elements) -> bool:
    get = _Getter(elements, "<")
    sop_class = get.text("SOPClassUID") or get.text("MediaStorageSOPClassUID")
    return sop_class in (CT_IMAGE, *ENHANCED_CT) or get.text("Modality") == "CT"


def _find_data_set_start(head: bytes) -> int | None:
    """The offset of the first element, or None if ``head`` is not the beginning of a DICOM file."""
    if head[_PREAMBLE : _PREAMBLE + 4] == _MAGIC:
        return _PREAMBLE + 4
    if head[:4] == _MAGIC:
        return 4
    for start in (0, _PREAMBLE):
        first = head[start : start + 8]
        # Meta information begins with (0002,0000) or (0002,0001), a data set with an element of group 8.
        if first[:2] == b"\x02\0" and first[2:4] in (b"\0\0", b"\1\0") and first[4:6] in _VRS:
            return start
        if len(first) == 8 and _detect_transfer_syntax(first) is not None:
            return start
    return None


def _detect_transfer_syntax(first: bytes) -> str | None:
    """The transfer syntax of a data set without meta information, from the first eight bytes."""
    if first[:2] == b"\x08\0" and first[3] in (0, 1):
        if first[4:6] in _VRS:
            return _EXPLICIT
        length = struct.unpack("<I", first[4:])[0]
        return _IMPLICIT if length <= 1024 and length % 2 == 0 else None
    if first[:2] == b"\0\x08" and first[4:6] in _VRS:
        return _BIG_ENDIAN
    return None


def _read_file_meta(file: BinaryIO, meta: _Elements) -> tuple[BinaryIO, str, int, bool]:
    """Read the meta information into ``meta``, and open the data set that follows it.

    Returns the stream at the first element of the data set, the transfer syntax, the length of the stream, and whether
    the file has complete meta information.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = _find_data_set_start(file.read(_PREAMBLE + 16))
    file.seek(start or 0)
    _ElementReader(file, size, True, "<").read_into(meta, only_group=2)
    syntax = _Getter(meta, "<").text("TransferSyntaxUID")
    here = file.tell()
    first = file.read(8)
    file.seek(here)
    if syntax == _DEFLATED:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), _MAX_INFLATED_BYTES)
        return io.BytesIO(inflated), syntax, len(inflated), True
    actual = _detect_transfer_syntax(first) if len(first) == 8 else None
    whole = bool(syntax) and start == _PREAMBLE + 4
    if actual is not None and (not syntax or {syntax, actual} == {_EXPLICIT, _IMPLICIT}):
        # Some programs write implicit data sets and declare them explicit, or the other way round.
        return file, actual, size, whole and actual == syntax
    return file, syntax or _IMPLICIT, size, whole


class _ElementReader:
    """Parses the elements of a data set in order. Raises EOFError if it ends too early and ValueError if invalid."""

    def __init__(self, stream: BinaryIO, size: int, explicit: bool, order: str) -> None:
        self.order = order
        self._stream = stream
        self._size = size
        self._explicit = explicit
        self._depth = 0
        self.voxel_tag: int | None = None

    def read_into(
        self, elements: _Elements, end: int | None = None, only_group: int | None = None
    ) -> tuple[int, int | None] | None:
        """Read the wanted elements up to position ``end`` into ``elements``, and stop at the voxels.

        Returns the offset and length of the voxels (length None if they are compressed), or None if there are none.
        """
        for tag, vr, length in self._iter_headers(end, only_group):
            if tag in _PIXELS and self._depth == 0:
                self.voxel_tag = tag
                return self._stream.tell(), None if length == _UNDEFINED else length
            is_sequence = vr == b"SQ" or tag in _SEQUENCES or length == _UNDEFINED
            if is_sequence and (tag in _SEQUENCES or length == _UNDEFINED):
                items = self._read_items(length, as_implicit=vr == b"UN")
                if tag in _SEQUENCES:
                    elements[tag] = items
            elif tag in _WANTED and length <= _MAX_VALUE_LENGTH:
                elements[tag] = self._take(length)
            else:
                self._require(length)
                self._stream.seek(length, os.SEEK_CUR)
        return None

    def require_fragments(self, jpeg_size: tuple[int, int] | None) -> None:
        """Raise ValueError if the compressed voxels here are incomplete, or state another size than the header.

        A fragment may be said to be longer than the file: GDCM allocates that many bytes, up to 4 GB. It does the same
        if a fragment is followed by anything other than a fragment or the end. JPEG, JPEG-LS and JPEG 2000 state their
        own size, which must be ``jpeg_size`` (columns, rows; None for other compressions). If the last image lacks its
        end, GDCM fills the missing part with arbitrary values.
        """
        last, count = b"", 0
        while self._stream.tell() + 8 <= self._size:
            group, element, length = struct.unpack(self.order + "2HI", self._take(8))
            tag = group << 16 | element
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM or self._stream.tell() + length > self._size:
                raise ValueError("its compressed voxels are damaged or incomplete")
            begin = self._stream.tell()
            # The first item is a table of offsets. The second one begins an image; later ones may continue it.
            if jpeg_size is not None and count:
                require_stated_size(self._take(min(length, HEADER_BYTES)), *jpeg_size, may_continue=count > 1)
            self._stream.seek(begin + max(length - _MAX_PADDING_BYTES, 0))
            last = self._take(min(length, _MAX_PADDING_BYTES))
            count += 1
        if jpeg_size is not None and _END_OF_IMAGE not in last:
            raise ValueError("its compressed voxels are incomplete")

    def _iter_headers(self, end: int | None, only_group: int | None) -> Iterator[tuple[int, bytes, int]]:
        while (at := self._stream.tell()) < (self._size if end is None else end):
            raw = self._take(8)
            group, element = struct.unpack(self.order + "2H", raw[:4])
            if only_group is not None and group != only_group:
                self._stream.seek(at)
                return
            tag = group << 16 | element
            if tag in (_ITEM_END, _SEQUENCE_END):
                return
            if not self._explicit:
                yield tag, b"", struct.unpack(self.order + "I", raw[4:])[0]
            elif raw[4:6] not in _VRS:
                raise ValueError(f"its header is damaged at byte {at}")
            elif raw[4:6] in _LONG_VRS:
                yield tag, raw[4:6], struct.unpack(self.order + "I", self._take(4))[0]
            else:
                yield tag, raw[4:6], struct.unpack(self.order + "H", raw[6:])[0]

    def _read_items(self, length: int, as_implicit: bool) -> list[_Elements]:
        end = None if length == _UNDEFINED else self._stream.tell() + self._require(length)
        explicit, self._explicit = self._explicit, self._explicit and not as_implicit
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("its header is nested too deeply")
        items: list[_Elements] = []
        while end is None or self._stream.tell() < end:
            group, element, size = struct.unpack(self.order + "2HI", self._take(8))
            tag = group << 16 | element
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise ValueError(f"its header is damaged at byte {self._stream.tell() - 8}")
            item: _Elements = {}
            self.read_into(item, None if size == _UNDEFINED else self._stream.tell() + self._require(size))
            items.append(item)
        self._depth -= 1
        self._explicit = explicit
        return items

    def _take(self, length: int) -> bytes:
        raw = self._stream.read(length)
        if len(raw) < length:
            raise EOFError("its header ends too early")
        return raw

    def _require(self, length: int) -> int:
        if self._stream.tell() + length > self._size:
            raise EOFError("its header ends too early")
        return length


class _Getter:
    """The values of elements as texts and numbers."""

    def __init__(self, elements: _Elements, order: str) -> None:
        self.order = order
        self._elements = elements

    def text(self, name: str) -> str:
        """The text of the element ``name``, its values separated by backslashes; empty if there is none."""
        raw = self._elements.get(_TAGS[name], b"")
        if not isinstance(raw, bytes):
            return ""
        charset = self._elements.get(_TAGS["SpecificCharacterSet"], b"")
        names = charset.decode("ascii", "replace").strip(" \0").split("\\") if isinstance(charset, bytes) else []
        codec = next((_CODECS[each.strip()] for each in reversed(names) if each.strip() in _CODECS), "latin-1")
        return "\\".join(value.strip(" \0") for value in raw.decode(codec, "replace").split("\\"))

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """The ``count`` numbers of the element ``name``; NaN if it has other values."""
        try:
            # Unlike DICOM, float() also accepts underscores and digits of other scripts.
            values = [float(each) if re.fullmatch(r"[\d.eE+-]+", each, re.ASCII) else math.nan
                      for each in self.text(name).split("\\")]  # fmt: skip
        except ValueError:
            values = []
        return tuple(values) if len(values) == count and all(map(math.isfinite, values)) else (math.nan,) * count

    def count(self, name: str, default: int) -> int:
        """The whole number in the element ``name``, or ``default``. Raises ValueError if the number is impossible."""
        raw = self._elements.get(_TAGS[name])
        if not isinstance(raw, bytes) or (not raw.strip(b" \0") and name == "NumberOfFrames"):
            return default
        if name == "NumberOfFrames":
            number = self.numbers(name, 1)[0]
            if not 1 <= number <= 1e6:
                raise ValueError("its number of frames is impossible")
            return int(number)
        return int(struct.unpack(self.order + "H", raw[:2])[0]) if len(raw) >= 2 else default
