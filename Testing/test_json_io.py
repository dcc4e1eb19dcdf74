"""JSON files are read, or refused with a ValueError."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from dcaseg.json_io import parse_json, read_json


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"NaN", b"[Infinity]", b'{"a": -Infinity}', b"1e999", b"9" * 5000, b"[" * 200_000,
        b'{"a":' * 100_000, b"\x00",
    ],
    ids=lambda content: repr(content[:12]),
)  # fmt: skip
def test_content_other_than_finite_json_is_a_value_error(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        parse_json(content)
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(ValueError):
        read_json(tmp_path / "file.json")


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text('{"a": [1, 2.5, -1e-300, null, true, "\u00fc"]}', encoding="utf-8")
    assert read_json(tmp_path / "file.json") == {"a": [1, 2.5, -1e-300, None, True, "\u00fc"]}


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="larger than"):
        read_json(tmp_path / "file.json")


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes and devices")
def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a regular file"):
            read_json(path)
