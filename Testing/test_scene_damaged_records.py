"""Review records in a scene that are damaged, or built to exhaust memory, are ignored with a warning."""

from __future__ import annotations

import base64
import json
import logging
import tracemalloc
import zlib

import numpy as np
import pytest

from dcaseg.errors import UserError

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytestmark = pytest.mark.scene

from DCASegmentationLib.scene.review_record import (
    ReviewState,
    pack,
    read_origin,
    read_review,
    read_state,
    read_suggestion,
    unpack,
    write_state,
)

LIST, SUGGESTIONS, STATE = (f"DCASegmentation.review{part}" for part in ("", ".suggestions", ".state"))
ORIGIN = "DCASegmentation.origin"
ANY = ["", "{", "null", "[1]", "7", '"text"', "NaN", "[" * 100_000, '{"a":' * 100_000, "\udcff", "9" * 5000]


@pytest.fixture
def node():
    return slicer.vtkMRMLSegmentationNode()


def bomb(megabytes: int = 1000) -> str:
    """Text of about a megabyte that decompresses to a gigabyte."""
    packer = zlib.compressobj(9)
    content = b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()
    return base64.b64encode(content).decode("ascii")


@pytest.mark.parametrize("text", ANY, ids=lambda text: repr(text[:8]))
def test_damaged_attributes_are_ignored(node, text):
    for name in (LIST, SUGGESTIONS, STATE, ORIGIN):
        node.SetAttribute(name, text.encode("utf-8", "replace").decode())
    assert read_review(node) is None
    assert read_suggestion(node, 1) is None
    assert read_state(node) == ReviewState()
    assert read_origin(node) is None


@pytest.mark.parametrize(
    "content",
    [
        {"statuses": []}, {"statuses": {"first": "accepted"}}, {"statuses": 7}, {"before": {"1": 7}},
        {"before": {"1": {"liver": 3}}}, {"before": []}, {"absent": 7}, {"absent": [3]}, {"absent": None},
        {"absent": "liver"}, {"statuses": {"3": ["accepted"]}},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_decisions_are_ignored_with_a_warning(node, content, caplog):
    node.SetAttribute(STATE, json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert read_state(node) == ReviewState()
    assert "ignored" in caplog.text


def test_an_unknown_status_is_ignored(node):
    node.SetAttribute(STATE, json.dumps({"statuses": {"1": "accepted", "2": "<b>"}}))
    assert read_state(node).statuses == {1: "accepted"}


@pytest.mark.parametrize("packed", ["", "?", "AAAA", 7, None, [], "eJw=", "eHh4eHh4eHh4"], ids=str)
def test_a_damaged_suggestion_is_ignored(node, packed):
    node.SetAttribute(SUGGESTIONS, json.dumps({"1": packed}))
    assert read_suggestion(node, 1) is None


@pytest.mark.slow
def test_a_suggestion_that_decompresses_to_a_gigabyte_uses_little_memory(node):
    packed = bomb()
    node.SetAttribute(SUGGESTIONS, json.dumps({"1": packed}))
    tracemalloc.start()
    assert read_suggestion(node, 1) is None
    with pytest.raises(UserError, match="larger than any finding"):
        unpack(packed, 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300e6


def test_replaced_voxels_are_decoded_or_rejected(node):
    mask = np.random.default_rng(0).random(1001) < 0.5
    assert np.array_equal(unpack(pack(mask), 1001), mask)
    assert not unpack("", 1001).any()
    for damaged in (pack(mask)[:-8], pack(mask[:500]), "?"):
        with pytest.raises(UserError, match="cannot be read"):
            unpack(damaged, 1001)


def test_written_records_are_read_back(node):
    state = ReviewState({1: "accepted", 2: "flagged"}, {3: {"liver": pack(np.ones(9, bool))}}, {"spleen"}, {"liver"})
    write_state(node, state)
    assert read_state(node) == state
