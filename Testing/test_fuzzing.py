"""Readers of what strangers may hand us, given damaged and made-up content: they read it or refuse it in one line.

Hypothesis makes the content, bounded in time. DCA_FUZZ_EXAMPLES sets how many examples each reader gets; the default
fits into continuous integration.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dcaseg.cohort.case import Outcome
from dcaseg.errors import BundleError, UserError
from dcaseg.json_io import parse_json
from dcaseg.method.log_gap import partition
from dcaseg.method.network import DCANet
from dcaseg.models.download import Source
from dcaseg.models.metadata_reader import parse_metadata
from dcaseg.models.user_models import add_bundle
from dcaseg.models.weight_headers import list_stored_tensors
from dcaseg.organs import AMOS
from dcaseg.review.schema import Alternative, Finding, OrganNote, Reason, Review, read_review
from dcaseg.training.checkpoints import RunRecord, read_record
from dcaseg.training.corrections import read_case, require_unchanged
from dcaseg.training.datalist import read_datalist
from dcaseg.training.options import TrainingOptions
from dcaseg.training.training_set import TrainingSet
from dcaseg.worker.protocol import ProtocolError, decode_event, decode_request
from faults.mutations import changed, damaged

EXAMPLES = int(os.environ.get("DCA_FUZZ_EXAMPLES", "60"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="DCA_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)

MESSAGE_FIELDS = ("version", "id", "ct", "out", "options", "fraction", "message", "seconds", "warnings", "pid")
OWN_FILES = ["review.json", "case.json", "dataset.json", "run.json"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.integers(10**30, 10**60),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
BYTES = st.binary(max_size=400)


def taken_or_refused(read: Callable[[], object], refusals: type[Exception] = UserError) -> bool:
    """Whether the content was accepted; any error other than a refusal fails the test."""
    try:
        read()
        return True
    except refusals as error:
        assert "\n" not in str(error)
        return False


@pytest.fixture(scope="module")
def metadata(small_bundle) -> dict[str, Any]:
    return json.loads((small_bundle / "configs" / "metadata.json").read_text())


@fuzzed
@given(content=BYTES)
def test_json_of_any_bytes(content):
    taken_or_refused(lambda: parse_json(content), ValueError)


@fuzzed
@given(content=BYTES)
def test_worker_lines_of_any_bytes(content):
    for decode in (decode_request, decode_event):
        taken_or_refused(lambda decode=decode: decode(content.replace(b"\n", b" ")), ProtocolError)


@fuzzed
@given(
    content=st.fixed_dictionaries(
        {"type": st.sampled_from(["segment", "cancel", "devices", "quit", "hello", "progress", "done", "error"])},
        optional=dict.fromkeys(MESSAGE_FIELDS, JSON),
    )
)
def test_worker_lines_of_any_fields(content):
    line = json.dumps({"version": 1, **content}).encode()
    for decode in (decode_request, decode_event):
        taken_or_refused(lambda decode=decode: decode(line), ProtocolError)


@fuzzed
@given(value=JSON, seed=st.integers(0, 2**32))
def test_bundle_metadata_with_any_value_anywhere(metadata, value, seed):
    written = json.dumps(changed(metadata, random.Random(seed), value)).encode()

    def read() -> None:
        found = parse_metadata(written, Path("bundle"))
        # Accepted metadata can be used: the options define a network, built here without memory.
        with torch.device("meta"):
            try:
                DCANet(**found.network)
            except (TypeError, ValueError) as error:
                raise BundleError(str(error).splitlines()[0]) from None
        assert found.weights.bytes <= 1 << 30
        json.dumps(found.to_json())

    taken_or_refused(read, BundleError)


@pytest.fixture(scope="module")
def weight_file(small_bundle) -> bytes:
    return (small_bundle / "models" / "model.safetensors").read_bytes()


@fuzzed
@given(seed=st.integers(0, 2**32))
def test_damaged_weight_files(weight_file, seed):
    dice = random.Random(seed)
    content = damaged(weight_file[:3000], dice) + weight_file[3000:]

    def read() -> None:
        for tensor in list_stored_tensors(io.BytesIO(content), len(content), "model.safetensors").values():
            assert tensor.offset >= 0 and tensor.offset + tensor.bytes <= len(content)

    taken_or_refused(read, BundleError)


@fuzzed
@given(content=BYTES)
def test_made_up_weight_files(content):
    taken_or_refused(lambda: list_stored_tensors(io.BytesIO(content), len(content), "model.safetensors"), BundleError)


@settings(fuzzed, max_examples=max(EXAMPLES // 4, 10))
@given(seed=st.integers(0, 2**32))
def test_damaged_zip_files_of_bundles(small_bundle, tmp_path_factory, seed):
    folder = tmp_path_factory.mktemp("zip")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(small_bundle.rglob("*")):
            archive.write(path, path.relative_to(small_bundle))
    whole, dice = content.getvalue(), random.Random(seed)
    # The directory is at the end.
    at = max(len(whole) - 1500, 0)
    (folder / "model.zip").write_bytes(whole[:at] + damaged(whole[at:], dice))
    taken_or_refused(lambda: add_bundle(folder / "model.zip", folder / "models"), UserError)
    assert {path.name for path in (folder / "models").glob("*")} <= {"random-weights"}
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def documents() -> dict[str, tuple[Any, Callable[[Path], object]]]:
    """Complete files of this program by name, with their readers."""
    place = Finding(
        *(1, "liver", 6, "Liver", 2.0, 1.0, 3.0, (1.0, 2.0, 3.0), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
        *(((0, 0, 0), (1, 1, 1)), (Reason("island", "An island."),)),
        Alternative("experts", (0, 6), 1.0, "The experts hold nothing."),
    )
    review = Review("AMOS", {"size": [1, 2, 3]}, (place,), (OrganNote("liver", 6, 1.0, ("small",)),)).to_json()
    groups = partition({organ.label: 100 - organ.label for organ in AMOS}, "average")
    run = RunRecord(AMOS, TrainingOptions(), TrainingSet.from_phantoms(2, 1, 1), groups).to_json()
    case = {
        "format": "dca-corrected-case", "version": 1, "vocabulary": "AMOS", "model": {"name": "m", "sha256": "0" * 64},
        "date": "2026-01-01", "reviewed": ["liver"], "unknown": [1, 2], "places": [
            {"rank": 1, "organ": "liver", "status": "corrected"}
        ], "sha256": {"ct.nii.gz": "0" * 64, "labels.nii.gz": "0" * 64},
    }  # fmt: skip
    datalist = {
        "name": "x", "training": [{"image": "a.nii.gz", "label": "b.nii.gz", "unknown": [1]}], "unlabelled": ["c.nii"],
        "validation": [{"image": "d.nii.gz", "label": "e.nii.gz"}], "test": [],
    }  # fmt: skip
    return {
        "review.json": (review, read_review),
        "case.json": (case, lambda path: (read_case(path.parent), require_unchanged(path.parent))),
        "dataset.json": (datalist, read_datalist),
        "run.json": (run, lambda path: read_record(path.parent)),
    }


@fuzzed
@given(value=JSON, seed=st.integers(0, 2**32), name=st.sampled_from(OWN_FILES))
def test_own_files_with_any_value_anywhere(documents, tmp_path_factory, value, seed, name):
    folder = tmp_path_factory.mktemp("own")
    for file in ("ct.nii.gz", "labels.nii.gz"):
        (folder / file).touch()
    content, read = documents[name]
    dice = random.Random(seed)
    written = json.dumps(changed(content, dice, value)).encode()
    (folder / name).write_bytes(damaged(written, dice) if dice.random() < 0.2 else written)
    taken_or_refused(lambda: read(folder / name), UserError)
    shutil.rmtree(folder)


@fuzzed
@given(content=JSON)
def test_reviews_and_outcomes_of_any_content(content):
    taken_or_refused(lambda: Review.from_json(content), UserError)
    taken_or_refused(lambda: Outcome.from_json(content), ValueError)


@fuzzed
@given(address=st.text(max_size=60) | st.text(max_size=30).map(lambda part: f"https://{part}#sha256=" + "0" * 64))
def test_addresses_of_any_text(address):
    taken_or_refused(lambda: Source.parse(address), UserError)


@fuzzed
@given(content=JSON, text=st.text(max_size=80))
def test_scene_records_of_any_content(content, text):
    slicer = pytest.importorskip("slicer", reason="needs slicer-core")
    assert slicer is not None
    from DCASegmentationLib.scene.review_record import read_origin, read_review, read_state, read_suggestion

    for name in ("", ".suggestions", ".state"):
        for value in (json.dumps(content), text, json.dumps({"statuses": content, "before": content, "1": content})):
            # The only method of a node that is called.
            node = SimpleNamespace(GetAttribute={f"DCASegmentation.review{name}": value}.get)
            read_origin(node)
            read_review(node)
            read_suggestion(node, 1)
            read_state(node)


def test_unchanged_content_is_accepted(metadata, weight_file, documents, tmp_path):
    """The content that the tests above damage is valid."""
    parse_metadata(json.dumps(metadata).encode(), Path("bundle"))
    assert len(list_stored_tensors(io.BytesIO(weight_file), len(weight_file), "model.safetensors")) >= 6
    for name in ("dataset.json", "review.json", "run.json"):
        content, read = documents[name]
        (tmp_path / name).write_text(json.dumps(content))
        read(tmp_path / name)


def test_every_reader_of_the_campaign_exists():
    """The campaign runs by hand: here at least its imports and readers are checked."""
    from faults.fuzzed_readers import all_readers

    names = [reader.name for reader in all_readers()]
    assert len(names) == len(set(names)) == 32, "change the number in threat-model.md, too"


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks Linux for the memory of a process")
def test_damaged_files_for_every_reader_are_read_or_refused_in_one_line():
    """A short campaign with a fixed seed; by hand it runs for hours."""
    command = [sys.executable, "-m", "Testing.faults.fuzzing", "--files", "99", "--hours", "0.08", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=390)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 ended otherwise than read or refused in one line." in run.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks Linux for the memory of a process")
def test_the_campaign_sees_every_way_to_fail(tmp_path):
    program = """
        import json, os, signal, sys, time
        from pathlib import Path
        from Testing.faults import fuzzing
        from Testing.faults.fuzzed_readers import Reader

        def write(folder):
            (folder / "file.bin").write_bytes(bytes(100))

        def reader(name, fail):
            def code_of(folder):
                if (folder / "file.bin").read_bytes() == bytes(100):
                    return 0
                return fail()
            return Reader(name, write, code_of)

        def refuse(text):
            print(text, file=sys.stderr)
            return 2

        def compute():
            while True:
                pass

        def take():
            held = b"x" * 300_000_000
            return refuse("Error: It is large.")

        fuzzing._MAX_BYTES, fuzzing._CPU_SECONDS, fuzzing._WALL_SECONDS = 200_000_000, 0, 5
        ways = {
            "refused": lambda: refuse("Error: It is damaged."),
            "read": lambda: 0,
            "traceback": lambda: 1 // 0,
            "several lines": lambda: refuse("First a line." + chr(10) + "Error: It is damaged."),
            "silent": lambda: 2,
            "raw text": lambda: refuse("Error: " + chr(27) + "[2J"),
            "crash": os.abort,
            "exit": lambda: os._exit(0),
            "computes": compute,
            "waits": lambda: time.sleep(1000),
            "memory": take,
        }
        fuzzing.all_readers = lambda: [reader(name, fail) for name, fail in ways.items()]
        campaign = fuzzing.Campaign(Path(sys.argv[1]), 1, [], Path(sys.argv[1]) / "record", Path(sys.argv[1]) / "kept")
        campaign.run(2 * len(ways), time.monotonic() + 300)
        print(json.dumps({name: dict(ends) for name, ends in campaign.counts.items()}))
        print(len(list((Path(sys.argv[1]) / "kept").iterdir())))
        again = fuzzing.Campaign(Path(sys.argv[1]) / "again", 1, [], Path(sys.argv[1]) / "record", None)
        print(again.total)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=280)
    ends, kept, total = run.stdout.splitlines() or [run.stderr] * 3
    names = {"silent": "several lines", "exit": "crash", "computes": "hang", "waits": "hang"}
    expected = ("refused", "read", "traceback", "several lines", "raw text", "crash", "memory")
    assert json.loads(ends) == {name: {names.get(name, name): 2} for name in (*expected, *names)}
    assert (int(kept), int(total)) == (18, 22)
