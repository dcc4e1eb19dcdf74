"""Every entry in the table of unusual inputs gets its verdict, from each interface that reads it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("nibabel")
pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from dcaseg.dicom.archive import gathered
from dcaseg.dicom.ct_folder import find_one_ct
from dcaseg.errors import ImageError
from dcaseg.imaging.ct_checks import check_ct
from dcaseg.imaging.grid import Grid
from dcaseg.imaging.readers import read_ct
from unusual_inputs import ACCEPTED, NOTED, PAGE, REFUSED, TABLE, UnusualInput, ct, page

DICOM = [item for item in TABLE if item.group == "DICOM"]


def read_directly(path: Path, item: UnusualInput) -> tuple[sitk.Image, list[str]]:
    notes: list[str] = []
    return read_ct(path, notes=notes, resample=item.resample), notes


def read_as_the_command(path: Path, item: UnusualInput) -> tuple[sitk.Image, list[str]]:
    found = find_one_ct(path, None, path / "out", resample=item.resample)
    notes = list(found.notes)
    with gathered(found.files, found.name) as folder:
        return read_ct(folder, notes=notes, resample=item.resample), notes


@pytest.mark.parametrize("item", TABLE, ids=lambda item: item.id)
def test_an_unusual_input_gets_its_verdict(item: UnusualInput, tmp_path: Path) -> None:
    require_verdict(item, item.write(tmp_path), read_directly)


@pytest.mark.parametrize("item", DICOM, ids=lambda item: item.id)
def test_an_unusual_dicom_folder_gets_the_same_verdict_from_the_command(item: UnusualInput, tmp_path: Path) -> None:
    require_verdict(item, item.write(tmp_path), read_as_the_command)


def require_verdict(item: UnusualInput, path: Path, read) -> None:
    if item.verdict == REFUSED:
        with pytest.raises(ImageError) as caught:
            check_ct(read(path, item)[0])
        assert item.words in caught.value.problem
        assert caught.value.remedy
        assert "\n" not in str(caught.value)
        return
    image, notes = read(path, item)
    notes += check_ct(image)
    if item.verdict == ACCEPTED:
        assert notes == []
    else:
        assert any(item.words in note for note in notes), notes
    if item.right:
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(ct()))
        assert Grid.from_image(image).is_same_as(Grid.from_image(ct()), 0.02)


@pytest.mark.slow
def test_without_pydicom_every_dicom_folder_gets_the_same_verdict(tmp_path: Path) -> None:
    """The folders are read in a separate process in which neither pydicom nor highdicom can be imported."""
    folders = {}
    for number, item in enumerate(DICOM):
        (tmp_path / str(number)).mkdir()
        folders[str(item.write(tmp_path / str(number)))] = item
    script = (
        "import sys, json\n"
        "for name in ('pydicom', 'highdicom', 'nibabel'): sys.modules[name] = None\n"
        "from pathlib import Path\n"
        "from dcaseg.dicom.ct_folder import find_one_ct\n"
        "from dcaseg.dicom.archive import gathered\n"
        "from dcaseg.errors import ImageError\n"
        "from dcaseg.imaging.ct_checks import check_ct\n"
        "from dcaseg.imaging.readers import read_ct\n"
        "from dcaseg.imaging.intensity import compute_voxel_checksum\n"
        "import SimpleITK as sitk\n"
        "outcomes = {}\n"
        "for path, resample in json.load(sys.stdin).items():\n"
        "    try:\n"
        "        found = find_one_ct(Path(path), None, Path(path) / 'out', resample=resample)\n"
        "        notes = list(found.notes)\n"
        "        with gathered(found.files, found.name) as folder:\n"
        "            image = read_ct(folder, notes=notes, resample=resample)\n"
        "        notes += check_ct(image)\n"
        "        outcomes[path] = [notes, compute_voxel_checksum(sitk.GetArrayViewFromImage(image))]\n"
        "    except ImageError as error:\n"
        "        outcomes[path] = [error.problem, '']\n"
        "print(json.dumps(outcomes))\n"
    )
    request = json.dumps({path: item.resample for path, item in folders.items()})
    run = subprocess.run([sys.executable, "-c", script], input=request, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    from dcaseg.imaging.intensity import compute_voxel_checksum

    for path, (message, checksum) in json.loads(run.stdout).items():
        item = folders[path]
        assert item.words in (message if isinstance(message, str) else " ".join(message))
        assert bool(checksum) == (item.verdict != REFUSED)
        if item.verdict != REFUSED and item.right:
            assert checksum == compute_voxel_checksum(sitk.GetArrayViewFromImage(ct()))


def test_the_page_in_the_docs_matches_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python Testing/unusual_inputs.py"


def test_every_verdict_is_in_the_table() -> None:
    assert {item.verdict for item in TABLE} == {ACCEPTED, NOTED, REFUSED}
    assert len({item.id for item in TABLE}) == len(TABLE)
