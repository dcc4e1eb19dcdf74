"""The size of an image that a JPEG, JPEG-LS or JPEG 2000 stream states in its own header.

Decoders trust it and not the size in the DICOM header: a stream of a few kilobytes that states billions of voxels makes
them allocate all memory. Sources: ITU-T T.81, B.2.2; ITU-T T.87, C.2.2; ITU-T T.800, A.5.1 and I.5.
"""

from __future__ import annotations

import struct

HEADER_BYTES = 1 << 14
"""As many bytes of a stream are enough to find the size."""

# A tile may be as small as one voxel, and each takes memory.
_MAX_TILES = 1024
_BOXES = b"\0\0\0\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"
# Start of frame: all but tables (DHT), a reserved marker (JPG) and arithmetic coding conditions (DAC).
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
# Markers without a length: TEM and RST0 to RST7.
_ALONE = {0x01, *range(0xD0, 0xD8)}


def require_stated_size(start: bytes, columns: int, rows: int, may_continue: bool) -> None:
    """Raise ValueError unless ``start``, the start of a stream, states an image of ``columns`` x ``rows``.

    With ``may_continue``, it may also be the continuation of a stream, which states nothing.
    """
    if start.startswith(b"\xff\xd8"):
        size = _read_jpeg_size(start)
    elif start.startswith(_BOXES):
        size = _read_jpeg_2000_size(_find_codestream(start))
    elif start.startswith(_CODESTREAM):
        size = _read_jpeg_2000_size(start)
    elif may_continue:
        return
    else:
        size = None
    if size != (columns, rows):
        raise ValueError("its compressed voxels are damaged or have another size than its header says")


def _read_jpeg_size(stream: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(stream) and stream[at] == 0xFF:
        marker = stream[at + 1]
        if marker == 0xFF:
            # A fill byte.
            at += 1
            continue
        if marker in _ALONE:
            at += 2
            continue
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", stream, at + 5)
            return width, height
        at += 2 + struct.unpack_from(">H", stream, at + 2)[0]
    return None


def _find_codestream(stream: bytes) -> bytes:
    """The content of the first box of type "jp2c"; empty if there is none."""
    at = 0
    while at + 16 <= len(stream):
        length, kind, long_length = struct.unpack_from(">I4sQ", stream, at)
        header = 16 if length == 1 else 8
        if kind == b"jp2c":
            return stream[at + header :]
        length = long_length if length == 1 else length
        if length < header:
            break
        at += length
    return b""


def _read_jpeg_2000_size(stream: bytes) -> tuple[int, int] | None:
    if len(stream) < 40 or not stream.startswith(_CODESTREAM):
        return None
    right, bottom, left, top, tile_width, tile_height, first_x, first_y = struct.unpack_from(">8I", stream, 8)
    if not tile_width or not tile_height or left >= right or top >= bottom or first_x > left or first_y > top:
        return None
    tiles = -(-(right - first_x) // tile_width) * -(-(bottom - first_y) // tile_height)
    return (right - left, bottom - top) if tiles <= _MAX_TILES else None
