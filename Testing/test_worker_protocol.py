"""The protocol between panel and worker: messages are preserved, and nothing else is accepted as a message."""

from __future__ import annotations

import json
import typing

import pytest

from dcaseg.worker import protocol
from dcaseg.worker.protocol import (
    VERSION,
    AddCorrectedCase,
    AddUnlabeledCT,
    Cancel,
    CaseAdded,
    Correct,
    Corrected,
    Devices,
    Done,
    Download,
    Downloaded,
    Failure,
    FoundDevices,
    Hello,
    Log,
    Progress,
    ProtocolError,
    Quit,
    Segment,
    WasCancelled,
    Work,
    decode_event,
    decode_request,
    encode,
)
from dcaseg.worker.server import HANDLERS

REQUESTS = [
    Segment("1", "/data/ct.nrrd", "/data/out"),
    Segment("läuft-2", "/data/Müller 腹部/ct.nrrd", "/data/out", "model", "cuda:1", {"overlap": 0.25, "organs": None}),
    Segment("3", "/data/1.dcm", "/data/out", files=("/data/1.dcm", "/data/2.dcm"), ct_copy="ct.nrrd"),
    Cancel("1"),
    Devices("2"),
    Correct("6", {"type": "stroke", "session": 1, "label": 10, "points": [[-12.5, 40, 95]], "add": None}),
    Download("3", "https://example.org/m.zip#sha256=" + "0" * 64, "/models"),
    AddCorrectedCase(
        *(
            "4",
            "/training",
            "ct-1",
            "/tmp/ct.nrrd",
            "/tmp/labels.nrrd",
            "AMOS",
            ("liver", "spleen"),
            "first",
            "ab" * 32,
        ),
        ({"rank": 1, "organ": "liver", "status": "corrected"},),
    ),
    AddUnlabeledCT("5", "/training", "/tmp/ct.nrrd"),
    Quit(),
]
EVENTS = [
    Hello(VERSION, 42, "0.1.0"),
    Progress("1", 0.5, "Segmenting window 3 of 6"),
    Progress("1", 1, "Finished"),
    Log("a\nline of two"),
    Log("Careful.", "warning"),
    Done("1", "/data/腹部", "CPU", {"network": 1.5, "reading": 0}, ("padded with air",)),
    Failure(None, "No.", "Do.", "Trace"),
    Failure("1", "No."),
    WasCancelled("1"),
    FoundDevices("2", {"cuda": "NVIDIA T4, 15 GiB", "cpu": "8 threads"}, {"mps": "none found"}),
    Corrected("3", {"patch": "/tmp/腹部.nrrd", "first": [1, 2, 3], "adds": True, "voxels_lost": {"6": 12}}),
    Downloaded("3", "/models/first"),
    CaseAdded("4", "ct-1", 12),
]


def test_every_message_is_tested_here():
    assert {each.type for each in REQUESTS} == set(protocol.REQUESTS)
    assert {each.type for each in EVENTS} == set(protocol.EVENTS)


def test_every_request_that_is_answered_has_a_handler():
    assert set(HANDLERS) == set(typing.get_args(Work))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda each: each.type)
def test_a_request_arrives_as_it_was_sent(request_):
    assert decode_request(encode(request_)) == request_


@pytest.mark.parametrize("event", EVENTS, ids=lambda each: each.type)
def test_an_event_arrives_as_it_was_sent(event):
    assert decode_event(encode(event)) == event


@pytest.mark.parametrize("message", [*REQUESTS, *EVENTS], ids=lambda each: each.type)
def test_a_message_is_one_line_of_ascii(message):
    line = encode(message)
    assert line.isascii() and line.endswith(b"\n") and line.count(b"\n") == 1


def test_a_name_that_is_not_valid_text_is_preserved():
    undecodable = b"/data/\xff.nrrd".decode("utf-8", "surrogateescape")
    assert decode_request(encode(Segment("1", undecodable, "out"))).ct == undecodable


def test_fields_with_a_default_may_be_left_out():
    line = b'{"type": "segment", "version": 1, "id": "1", "ct": "a", "out": "b"}'
    assert decode_request(line) == Segment("1", "a", "b", None, "auto", {})


def test_a_request_of_an_earlier_panel_names_the_backend():
    line = b'{"type": "segment", "version": 1, "id": "1", "ct": "ct.nrrd", "out": "out", "runtime": "openvino"}\n'
    assert decode_request(line) == Segment("1", "ct.nrrd", "out", backend="openvino")


def test_fields_of_a_later_minor_change_are_ignored():
    line = b'{"type": "cancel", "version": 1, "id": "1", "reason": "bored"}'
    assert decode_request(line) == Cancel("1")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"segment please", "not a line of JSON: segment please"),
        (b'{"type": "cancel", ', "not a line of JSON"),
        (b"\xff\xfe\x00", "not a line of JSON"),
        (b"[" * 100_000, "not a line of JSON"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"version": 1}', "There is no 'None'; the known types are segment, devices, download, add_corrected_case, "),
        (b'{"type": "fly", "version": 1}', "There is no 'fly'"),
        (b'{"type": ["segment"], "version": 1}', "There is no"),
        (b'{"type": "done", "version": 1, "id": "1"}', "There is no 'done'"),
        (b'{"type": "cancel", "version": 1}', "id is missing"),
        (b'{"type": "cancel", "version": 1, "id": 1}', "id is 1, not text"),
        (b'{"type": "cancel", "version": 1, "id": null}', "id is None, not text"),
        (
            b'{"type": "segment", "version": 1, "id": "1", "ct": "a", "out": "b", "options": []}',
            "options is a list of 0, not an object",
        ),
        (b'{"type": "cancel", "id": "1"}', "states no version"),
        (
            b'{"type": "cancel", "version": 2, "id": "1"}',
            "uses version 1 of its protocol, but .* version 2",
        ),
        (b'{"type": "cancel", "version": "1", "id": "1"}', "has version 1"),
        (
            json.dumps({"version": 1, "type": "add_unlabeled_ct", "id": "1", "folder": "a", "ct": ["b"]}).encode(),
            "The 'add_unlabeled_ct' cannot be read: ct is a list of 1, not text.",
        ),
    ],
)
def test_other_lines_are_not_requests_and_the_reason_is_given(line, complaint):
    with pytest.raises(ProtocolError, match=complaint):
        decode_request(line)


@pytest.mark.parametrize(
    "line",
    [
        b"Using device cuda",
        b'{"type": "progress", "id": "1", "fraction": "half", "message": ""}',
        b'{"type": "progress", "id": "1", "fraction": true, "message": ""}',
        b'{"type": "done", "id": "1", "folder": "a", "device": "b", "seconds": {"network": "long"}}',
        b'{"type": "done", "id": "1", "folder": "a", "device": "b", "seconds": {}, "warnings": [1]}',
    ],
)
def test_other_lines_are_not_events(line):
    with pytest.raises(ProtocolError):
        decode_event(line)


def test_a_refusal_names_the_run_of_the_line():
    with pytest.raises(ProtocolError) as refusal:
        decode_request(b'{"type": "segment", "version": 7, "id": "third"}')
    assert refusal.value.id == "third"
    with pytest.raises(ProtocolError) as refusal:
        decode_request(b"nothing at all")
    assert refusal.value.id is None


def test_numbers_that_json_does_not_support_are_not_sent():
    with pytest.raises(ValueError, match="JSON"):
        encode(Progress("1", float("nan"), ""))


def test_requests_carry_the_version():
    assert {json.loads(encode(each))["version"] for each in REQUESTS} == {VERSION}
