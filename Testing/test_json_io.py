"""JSON files are read and converted to dataclasses, or refused with a ValueError that names the wrong key."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from dcaseg.json_io import DataError, check, dump, load, parse_json, read_json
from dcaseg.option_fields import make_option_metadata, option


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


@dataclass(frozen=True)
class Point:
    """A part of a stored value."""

    x: float
    name: str = "p"


@dataclass(frozen=True)
class Stored:
    """One field of each type that ``load`` supports."""

    count: int = field(metadata=make_option_metadata(minimum=1, maximum=8, key="n", earlier=("number",)))
    kind: Literal["a", "b"] = "a"
    share: float = option(0.5, minimum=0, below=1)
    sides: tuple[float, float] = (1.0, 2.0)
    points: tuple[Point, ...] = ()
    by_label: Mapping[int, str] = field(default_factory=dict)
    on: bool = False
    note: str | None = None
    limit: float = option(1.0, above=0, maximum=math.inf)
    names: set[str] = field(default_factory=set)


def test_a_dataclass_is_loaded_from_json() -> None:
    content = parse_json(
        '{"n": 3, "kind": "b", "share": 0, "sides": [1, 2.5], "points": [{"x": 1}], "by_label": {"7": "liver"}, '
        '"on": true, "note": null}'
    )
    assert load(Stored, content) == Stored(3, "b", 0.0, (1.0, 2.5), (Point(1.0),), {7: "liver"}, True)
    assert load(Stored, {"number": 2}).count == 2, "a key that an earlier version wrote"
    assert load(Stored, {"n": 1, "new": 2}, ignore_unknown=True) == Stored(1)
    assert load(Stored, {"n": 1, "limit": math.inf}).limit == math.inf, "from a checkpoint"


def test_what_is_dumped_is_loaded_again() -> None:
    points = (Point(1.0), Point(2.0))
    stored = Stored(3, "b", 0.25, (1.0, 2.5), points, {7: "liver"}, True, "note", names={"spleen", "liver"})
    content = dump(stored)
    assert content["n"] == 3 and "count" not in content
    assert content["points"][1] == {"x": 2.0, "name": "p"}
    assert content["names"] == ["liver", "spleen"]
    assert load(Stored, json.loads(json.dumps(content))) == stored


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is 0, not a number from 1 to 8"),
        ({"n": 1.5}, "n is 1.5, not a whole number"),
        ({"n": True}, "n is True, not a whole number"),
        ({"kind": "c"}, "kind is 'c', not one of a, b"),
        ({"kind": ["a"]}, "kind is a list of 1, not one of a, b"),
        ({"share": 1}, "share is 1, not a number from 0 to below 1"),
        ({"share": 10**39}, f"share is {10**39}, not a finite number of possible size"),
        ({"share": math.nan}, "share is nan, not a finite number of possible size"),
        ({"sides": [1]}, "sides is a list of 1, not 2 numbers"),
        ({"sides": 3}, "sides is 3, not 2 numbers"),
        ({"points": {}}, "points is an object, not a list"),
        ({"points": [{"x": 1}, {}]}, "points[1].x is missing"),
        ({"points": [{"x": 1, "y": 2}]}, "points[0].y is unknown"),
        ({"points": [3]}, "points[0] is 3, not an object"),
        ({"by_label": {"liver": "7"}}, "by_label has the key 'liver', which is not a whole number"),
        ({"by_label": {"7": 3}}, "by_label.7 is 3, not text"),
        ({"on": 1}, "on is 1, not true or false"),
        ({"note": 1}, "note is 1, not text"),
        ({"names": "liver"}, "names is 'liver', not a list"),
        ({"names": [1]}, "names[0] is 1, not text"),
        ({"limit": 0}, "limit is 0, not a number above 0 and up to inf"),
        ({"note\n" * 50: 1}, ("note\n" * 50)[:60] + " is unknown"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_error_names_the_first_wrong_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load(Stored, {"n": 1, **change})
    assert str(caught.value) == message
    assert not isinstance(caught.value, KeyError)


@pytest.mark.parametrize("content", [None, 3, "text", [], [{"n": 1}]], ids=str)
def test_content_other_than_an_object_is_refused(content: object) -> None:
    with pytest.raises(DataError, match=r"the content is .*, not an object"):
        load(Stored, content)


def test_a_missing_key_differs_from_a_wrong_value() -> None:
    with pytest.raises(DataError, match=r"run\.n is missing") as caught:
        load(Stored, {}, "run")
    assert caught.value.is_missing and caught.value.key == "run.n"


def test_options_made_in_python_are_checked_like_json() -> None:
    check(Stored(1))
    with pytest.raises(DataError, match="share is 2, not a number"):
        check(Stored(1, share=2))
