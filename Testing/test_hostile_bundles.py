"""Bundles made to exhaust memory, never end or leave their folder are refused quickly and with little memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import struct
import subprocess
import sys
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dcaseg.errors import BundleError
from dcaseg.models.bundle import Bundle
from dcaseg.models.user_models import add_bundle

pytestmark = pytest.mark.skipif(os.name != "posix", reason="makes links, pipes and sparse files")

METADATA = Path("configs", "metadata.json")
WEIGHTS = Path("models", "model.safetensors")
GIB = 1 << 30
MAX_MB, MAX_SECONDS = 300, 10


def described(folder: Path, **weights: object) -> None:
    content = json.loads((folder / METADATA).read_text())
    content["dca"]["weights"].update(weights)
    (folder / METADATA).write_text(json.dumps(content))


def new(folder: Path, content: bytes) -> None:
    (folder / WEIGHTS).write_bytes(content)
    described(folder, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def network_options(folder: Path, **options: object) -> None:
    content = json.loads((folder / METADATA).read_text())
    content["dca"]["network"].update(options)
    (folder / METADATA).write_text(json.dumps(content))


def sparse(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def link(path: Path, target: str) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def sparse_weights_as_described(folder: Path) -> None:
    """Sparse weights as large as the largest network's may be."""
    network_options(folder, n_filters=32)
    sparse(folder / WEIGHTS, 400 << 20)
    described(folder, bytes=400 << 20, sha256="0" * 64)


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def whole(shape: list[int], places: list[int]) -> dict[str, object]:
    return {"encoder.blocks.0.0.weight": {"dtype": "F32", "shape": shape, "data_offsets": places}}


HOSTILE: dict[str, Callable[[Path], object]] = {
    "weights of 1 TB, with holes": lambda folder: sparse(folder / WEIGHTS, 1 << 40),
    "weights of 400 MB, with holes, as described": sparse_weights_as_described,
    "weights said to have 1 TB": lambda folder: described(folder, bytes=1 << 40),
    "metadata of 8 GB": lambda folder: sparse(folder / METADATA, 8 * GIB),
    "metadata nested 100,000 deep": lambda folder: (folder / METADATA).write_text("[" * 100_000),
    "metadata are a pipe": lambda folder: ((folder / METADATA).unlink(), os.mkfifo(folder / METADATA)),
    "weights are a pipe": lambda folder: ((folder / WEIGHTS).unlink(), os.mkfifo(folder / WEIGHTS)),
    "weights never end": lambda folder: link(folder / WEIGHTS, "/dev/zero"),
    "metadata never end": lambda folder: link(folder / METADATA, "/dev/zero"),
    "metadata lead elsewhere": lambda folder: link(folder / METADATA, "/etc/passwd"),
    "a folder in itself": lambda folder: link(folder / "models", ".."),
    "600 filters": lambda folder: network_options(folder, n_filters=600),
    "a million stages": lambda folder: network_options(folder, n_stages=[[10**6] * 4] * 3),
    "dilation beyond all": lambda folder: network_options(folder, dilations=[[10**9] * 4] * 3),
    "32 filters in a file of few": lambda folder: network_options(folder, n_filters=32),
    "a header of 16 EB": lambda folder: new(folder, struct.pack("<Q", 2**63) + b"{}"),
    "a shape of any size": lambda folder: new(folder, safetensors(whole([10**6] * 8, [0, 4]), bytes(4))),
    "a weight before the file": lambda folder: new(folder, safetensors(whole([1], [-4, 0]), bytes(4))),
    "a weight behind the file": lambda folder: new(folder, safetensors(whole([1], [10**15, 10**15 + 4]), bytes(4))),
    "a header that is a list": lambda folder: new(folder, safetensors([1, 2])),
    "a header nested 100,000 deep": lambda folder: new(folder, struct.pack("<Q", 10**5) + b"[" * 10**5),
}


REFUSE = """
    import json, resource, sys, time
    from pathlib import Path
    import torch
    from dcaseg.models.user_models import add_bundle
    from dcaseg.models.bundle import Bundle
    from dcaseg.errors import BundleError

    good, models, *hostile = map(Path, sys.argv[1:])
    Bundle.load(good).network()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for folder in hostile:
        said = []
        started = time.monotonic()
        for use in (lambda: Bundle.load(folder).network(), lambda: add_bundle(folder, models)):
            try:
                use()
                said.append("taken")
            except BundleError as error:
                said.append(str(error))
        took = time.monotonic() - started
        peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps([folder.name, said, round(took, 2), round(peak, 1)]), flush=True)
"""


@pytest.mark.slow
def test_hostile_bundles_are_refused_in_little_memory_and_time(small_bundle, tmp_path):
    names = list(HOSTILE)
    folders = [tmp_path / "in" / str(number) for number in range(len(names))]
    for name, folder in zip(names, folders, strict=True):
        shutil.copytree(small_bundle, folder)
        HOSTILE[name](folder)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(REFUSE), small_bundle, tmp_path / "models", *folders],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(names)
    for name, (_, said, seconds, peak) in zip(names, found, strict=True):
        # Without PyTorch, as when Slicer adds a bundle, only the metadata and the file sizes are checked.
        assert said[0] != "taken", name
        assert peak < MAX_MB, (name, peak)
        assert seconds < MAX_SECONDS, (name, seconds)
    left = {path.name for path in (tmp_path / "models").iterdir()}
    assert left <= {"random-weights"}


def test_links_in_a_bundle_are_not_copied(small_bundle, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(small_bundle, folder)
    (tmp_path / "secret.txt").write_text("mine")
    for target in (tmp_path / "secret.txt", folder):
        (folder / "docs" / "more").symlink_to(target)
        with pytest.raises(BundleError, match=r"'docs/more' in it is a link"):
            add_bundle(folder, tmp_path / "models")
        (folder / "docs" / "more").unlink()


def zipped(path: Path, files: dict[str, bytes | Path], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            if isinstance(content, Path):
                archive.write(content, name)
            else:
                archive.writestr(name, content)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["other files", "weights", "metadata", "many files", "other compression"])
def test_zip_bombs_are_refused_before_they_are_unpacked(small_bundle, tmp_path, monkeypatch, kind):
    files: dict[str, bytes | Path] = {
        path.relative_to(small_bundle).as_posix(): path for path in small_bundle.rglob("*") if path.is_file()
    }
    zeros = bytes(300 << 20)
    compression = zipfile.ZIP_DEFLATED
    if kind == "other files":
        files["docs/figure.png"] = zeros
    elif kind == "weights":
        files[WEIGHTS.as_posix()] = zeros
    elif kind == "metadata":
        files = {METADATA.as_posix(): zeros}
    elif kind == "many files":
        files |= {f"docs/{number}.txt": b"" for number in range(1200)}
    else:
        compression = zipfile.ZIP_LZMA
    written: list[int] = []
    monkeypatch.setattr("dcaseg.models.user_models._copy", lambda source, target, size: written.append(size))
    with pytest.raises(BundleError):
        add_bundle(zipped(tmp_path / "bomb.zip", files, compression), tmp_path / "models")
    assert written == []
    assert list((tmp_path / "models").iterdir()) == []


def test_added_files_have_ordinary_permissions(small_bundle, tmp_path):
    added = add_bundle(small_bundle, tmp_path / "models")
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    assert stat.S_IMODE((added / METADATA).stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    assert stat.S_IMODE(added.stat().st_mode) == stat.S_IMODE((tmp_path / "folder").stat().st_mode)
    assert Bundle.load(added).network() is not None


def test_a_bundle_cannot_have_the_name_of_a_shipped_one(small_bundle, tmp_path, monkeypatch):
    from dcaseg.models import user_models as adding

    monkeypatch.setattr(adding, "find_shipped_bundles", lambda: [Path("/program/models/random-weights")])
    with pytest.raises(BundleError, match="shipped with the program"):
        add_bundle(small_bundle, tmp_path / "models")
