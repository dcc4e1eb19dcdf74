"""Damages valid content: bytes, lines of a text header, or values of a JSON document."""

from __future__ import annotations

import gzip
import json
import random
import struct
from typing import Any

_ODD_TEXTS = (
    *("", " ", "0", "-1", "1", "nan", "inf", "-inf", "1e308", "1e999", "2147483648", "18446744073709551616", "9" * 60),
    *("/dev/zero", "../../../../etc/passwd", "\0", "a" * 5000, "\x1b[2J", "‮evil", "line\nbreak", "%s%n", "é", "True"),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 1.5, -0.0, 1e308, float("nan"), float("inf")),
    *([], {}, [[]], [None], {"": None}, [0] * 3, [1e308] * 3, ["a"], [[[[[[]]]]]], {"a": {"b": {"c": 1}}}),
    *(_ODD_TEXTS),
)
"""Values that stand where others belong."""


def changed(content: Any, dice: random.Random, value: Any) -> Any:
    """``content`` with one value, at any depth, replaced by ``value`` or removed."""
    copy = json.loads(json.dumps(content))
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        for key, inner in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, key))
            if isinstance(inner, dict | list):
                visit(inner)

    visit(copy)
    if not places:
        return value
    node, key = dice.choice(places)
    if dice.random() < 0.2 and isinstance(node, dict):
        del node[key]
    else:
        node[key] = value
    return copy


def damaged(content: bytes, dice: random.Random) -> bytes:
    """``content`` truncated, with bits flipped, with parts overwritten by others, or with numbers made large."""
    found = bytearray(content)
    for _ in range(dice.randint(1, 4)):
        if not found:
            break
        at = dice.randrange(len(found))
        kind = dice.randrange(5)
        if kind == 0:
            found[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del found[at:]
        elif kind == 2:
            part = found[at : at + dice.randint(1, 64)]
            to = dice.randrange(len(found))
            found[to : to + len(part)] = part
        elif kind == 3:
            found[at : at + 8] = struct.pack("<Q", dice.choice([0, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
        else:
            found[at:at] = dice.randbytes(dice.randint(1, 16))
    return bytes(found)


def mutated(name: str, content: bytes, dice: random.Random) -> bytes:
    """``content`` of the file ``name``, damaged in a way that a reader of its format gets far with."""
    lower = name.lower()
    if lower.endswith(".json"):
        return _mutated_json(content, dice)
    if lower.endswith((".csv", ".txt", ".tsv", ".jsonl", ".mhd")):
        return _mutated_lines(content, dice) if dice.random() < 0.8 else damaged(content, dice)
    if lower.endswith((".nrrd", ".nhdr", ".mha")) and dice.random() < 0.75:
        return _mutated_text_header(content, dice)
    if content[:2] == b"\x1f\x8b" and dice.random() < 0.6:
        # Damage under an intact compression reaches the reader of the image.
        return gzip.compress(_near_the_start(gzip.decompress(content), dice), 1)
    return _near_the_start(content, dice) if dice.random() < 0.7 else damaged(content, dice)


def _mutated_json(content: bytes, dice: random.Random) -> bytes:
    kind = dice.random()
    if kind < 0.15:
        return damaged(content, dice)
    if kind < 0.2:
        return dice.choice(
            [b"", b"null", b"[]", b"{}", b"3", b'"text"', b"[" * 100_000, b"\xff\xfe", b"{" * 5000, b"NaN"]
        )
    found = json.loads(content)
    for _ in range(dice.randint(1, 2)):
        if not isinstance(found, dict | list):
            break
        found = changed(found, dice, dice.choice(ODD_VALUES))
    return json.dumps(found).encode("utf-8", "surrogatepass")


def _mutated_lines(content: bytes, dice: random.Random) -> bytes:
    lines = content.split(b"\n")
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(lines))
        kind = dice.randrange(5)
        words = lines[at].replace(b",", b" , ").split(b" ")
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(dice.randrange(len(lines)), lines[at])
        elif kind == 2:
            words[dice.randrange(len(words))] = dice.choice(_ODD_TEXTS).encode()
            lines[at] = b" ".join(words)
        elif kind == 3:
            lines[at] = damaged(lines[at], dice)
        else:
            del words[dice.randrange(len(words))]
            lines[at] = b" ".join(words)
        lines = lines or [b""]
    return b"\n".join(lines)


def _mutated_text_header(content: bytes, dice: random.Random) -> bytes:
    ends = [content.find(end) for end in (b"\n\n", b"ElementDataFile")]
    end = max(ends)
    end = min(end if end > 0 else len(content), 4000)
    # MetaImage's last line of the header names the file.
    end = content.find(b"\n", end) if content[end : end + 1] == b"E" else end
    return _mutated_lines(content[:end], dice) + content[end:]


def _near_the_start(content: bytes, dice: random.Random) -> bytes:
    size = dice.choice([64, 400, 2000])
    return damaged(content[:size], dice) + content[size:]
