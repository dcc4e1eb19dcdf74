"""Results are written completely or not at all, and no other files are lost."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg import temp_paths
from dcaseg.errors import OutputError
from dcaseg.imaging import writers
from dcaseg.imaging.writers import new_folder, temporary_folder, write_image, write_json, write_text

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]
as_a_user = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="root and Windows write into read-only folders"
)


def an_image(size: int = 8) -> sitk.Image:
    return sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 1000, (size,) * 3).astype(np.int16))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize("extension", FORMATS)
def test_an_image_is_written_and_no_temporary_file_is_left(extension: str, tmp_path: Path) -> None:
    (tmp_path / f"ct{extension}").write_text("an older file")
    write_image(an_image(), tmp_path / f"ct{extension}")
    assert names(tmp_path) == [f"ct{extension}"]
    read = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / f"ct{extension}")))
    np.testing.assert_array_equal(read, sitk.GetArrayFromImage(an_image()))


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    write_image(an_image(), tmp_path / "ct.nrrd")
    assert (tmp_path / "ct.nrrd").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_label_maps_are_compressed(tmp_path: Path) -> None:
    write_image(sitk.Image([50, 50, 50], sitk.sitkUInt8), tmp_path / "labels.nrrd")
    assert (tmp_path / "labels.nrrd").stat().st_size < 2000


def test_text_and_json_are_utf8(tmp_path: Path) -> None:
    write_text("5 mm³\n", tmp_path / "log.txt")
    write_json({"volume": "5 mm³"}, tmp_path / "volumes.json")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "5 mm³\n"
    assert json.loads((tmp_path / "volumes.json").read_text(encoding="utf-8")) == {"volume": "5 mm³"}
    assert names(tmp_path) == ["log.txt", "volumes.json"]


def test_a_missing_folder_a_folder_and_another_format_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"There is no folder {tmp_path / 'missing'}"):
        write_image(an_image(), tmp_path / "missing" / "ct.nrrd")
    (tmp_path / "ct.nrrd").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write_image(an_image(), tmp_path / "ct.nrrd")
    with pytest.raises(OutputError, match="cannot be written in that format"):
        write_image(an_image(), tmp_path / "ct.png")
    assert names(tmp_path) == ["ct.nrrd"]


@as_a_user
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(OutputError, match="not writable"):
            write_image(an_image(), tmp_path / "ct.nrrd")
        with pytest.raises(OutputError, match="not writable"), new_folder(tmp_path / "out"):
            pass
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
@pytest.mark.parametrize("extension", FORMATS)
def test_if_writing_fails_the_older_file_stays(extension: str, tmp_path: Path) -> None:
    """The kernel truncates files at 50 kB, as a full disk would. For NIfTI, ITK itself does not notice."""
    target = tmp_path / f"ct{extension}"
    target.write_text("an older file")
    program = f"""
        import resource
        import numpy as np, SimpleITK as sitk
        from pathlib import Path
        from dcaseg.errors import OutputError
        from dcaseg.imaging.writers import write_image
        image = sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 1000, (50, 50, 50)).astype(np.int16))
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            write_image(image, Path({str(target)!r}))
        except OutputError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    assert "disk is" in done.stdout and "full" in done.stdout
    assert names(tmp_path) == [target.name]
    assert target.read_text() == "an older file"


@pytest.mark.parametrize("extension", FORMATS)
def test_a_full_disk_is_reported_and_no_partial_file_is_left(extension: str, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        with pytest.raises(OutputError, match="full"):
            write_image(an_image(50), tmp_path / f"ct{extension}")
        with pytest.raises(OutputError, match="disk is full"):
            write_text("x" * 200_000, tmp_path / "log.txt")
        with pytest.raises(OutputError, match="disk is full"), new_folder(tmp_path / "out") as folder:
            (folder / "volumes.csv").write_text("x" * 200_000)
        assert names(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_appears_only_when_the_work_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "labels.txt").write_text("1")
        assert not out.exists()
    assert names(out) == ["labels.txt"]
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, FileNotFoundError])
def test_nothing_remains_if_the_block_fails(error: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "labels.txt").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_a_full_disk_in_the_block_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full"), new_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_an_existing_folder_is_kept_without_overwrite(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.txt").write_text("older")
    with pytest.raises(OutputError, match="already exists"), new_folder(out):
        pytest.fail("the work must not even begin")
    assert (out / "labels.txt").read_text() == "older"

    with new_folder(out, overwrite=True) as folder:
        (folder / "labels.txt").write_text("1")
        assert (out / "labels.txt").read_text() == "older"
    assert names(out) == ["labels.txt"] and (out / "labels.txt").read_text() == "1"
    assert names(tmp_path) == ["out"]


def test_an_older_result_stays_if_the_block_fails(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.txt").write_text("older")
    with pytest.raises(ValueError), new_folder(out, overwrite=True) as folder:
        (folder / "labels.txt").write_text("newer")
        raise ValueError
    assert (out / "labels.txt").read_text() == "older"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "labels.txt").write_text("1")
    assert names(tmp_path / "out") == ["labels.txt"]


def test_only_recognized_results_are_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    with (
        pytest.raises(OutputError, match=r"not an earlier result \(it has no request.json\)"),
        new_folder(out, overwrite=True, recognized_by="request.json"),
    ):
        pytest.fail("the work must not even begin")
    (out / "thesis.doc").unlink()
    (out / "request.json").write_text("{}")
    with new_folder(out, overwrite=True, recognized_by="request.json") as folder:
        (folder / "request.json").write_text("new")
    assert names(out) == ["request.json"] and (out / "request.json").read_text() == "new"


def test_a_result_with_other_files_in_it_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "organs").mkdir(parents=True)
    for name in ("request.json", "labels.nrrd", "organs/liver.nrrd", ".DS_Store", "organs/Thumbs.db"):
        (out / name).write_text("old")

    def is_own(name: str) -> bool:
        return name in ("request.json", "labels.nrrd", "organs/liver.nrrd")

    for name in ("notes.txt", "organs/my_liver.nrrd", "a/b/ct.nii.gz"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
        with (
            pytest.raises(OutputError, match=rf"a file that is not part of a result \({name}\)") as caught,
            new_folder(out, True, "request.json", is_own),
        ):
            pytest.fail("the work must not even begin")
        assert "Move it elsewhere" in caught.value.remedy
        assert (out / name).read_text() == "mine"
        (out / name).unlink()
    (out / "linked").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="linked"), new_folder(out, True, "request.json", is_own):
        pytest.fail("the work must not even begin")
    (out / "linked").unlink()
    with (
        pytest.raises(OutputError, match=r"2 files that are not part of a result \(1.txt, 2.txt\)"),
        new_folder(out, True, "request.json", is_own) as folder,
    ):
        # Saved while the work is done.
        for name in ("1.txt", "2.txt"):
            (out / name).write_text("mine")
    assert (out / "1.txt").exists()
    for name in ("1.txt", "2.txt"):
        (out / name).unlink()
    with new_folder(out, True, "request.json", is_own) as folder:
        (folder / "request.json").write_text("new")
    assert names(out) == ["request.json"]


def test_the_working_and_home_directories_are_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    working, home = tmp_path / "a" / "working", tmp_path / "home"
    for folder in (working, home):
        folder.mkdir(parents=True)
        (folder / "mine.txt").write_text("mine")
    monkeypatch.chdir(working)
    monkeypatch.setenv("HOME", str(home))
    (tmp_path / "link").symlink_to(working.parent)
    spelled_otherwise = (Path("../working"), tmp_path / "link", tmp_path / "link" / "working")
    for folder in (working, working.parent, home, Path(), *spelled_otherwise):
        with pytest.raises(OutputError, match="is not replaced"), new_folder(folder, overwrite=True):
            pytest.fail("the work must not even begin")
    assert (working / "mine.txt").exists()


@pytest.mark.parametrize("moment", [0, 1], ids=["after the first rename", "after the second rename"])
def test_ctrl_c_while_a_result_is_replaced_in_two_steps_loses_nothing(moment: int, tmp_path: Path, monkeypatch) -> None:
    """As on a network file system. Python raises KeyboardInterrupt right after the call in which the signal came."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.txt").write_text("earlier")
    rename, count = Path.rename, [moment]

    def interrupted(self: Path, target: Path) -> Path:
        renamed = rename(self, target)
        count[0] -= 1
        if count[0] == -1:
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(writers, "exchange", lambda one, other: False)
    with (
        pytest.raises(KeyboardInterrupt),
        monkeypatch.context() as renaming,
        new_folder(out, overwrite=True, is_own=lambda name: True) as folder,
    ):
        (folder / "labels.txt").write_text("new")
        renaming.setattr(Path, "rename", interrupted)
    assert (out / "labels.txt").read_text() == ("new" if moment else "earlier")
    monkeypatch.setattr(temp_paths, "_cleaned", {})
    with monkeypatch.context() as ended:
        # The next process finds what this one left.
        ended.setattr(temp_paths, "_has_ended", lambda *_: True)
        temp_paths.clean(tmp_path)
    assert names(tmp_path) == ["out"] and (out / "labels.txt").read_text() == ("new" if moment else "earlier")


def test_a_file_in_the_way_is_named_and_missing_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match="is not a folder"), new_folder(tmp_path / "out", overwrite=True):
        pass
    with new_folder(tmp_path / "missing" / "parents" / "made"):
        pass
    assert names(tmp_path / "missing" / "parents") == ["made"]
    with pytest.raises(OutputError, match="cannot be written"), new_folder(tmp_path / "out" / "below"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_private_folder_is_readable_only_by_its_owner(tmp_path):
    before = os.umask(0o000)
    try:
        with new_folder(tmp_path / "own", private=True) as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700, "from the beginning"
            (folder / "cases").mkdir()
            (folder / "cases" / "P1").write_text("a patient", encoding="utf-8")
            (folder / "link").symlink_to(tmp_path)
        with new_folder(tmp_path / "all") as folder:
            (folder / "P1").write_text("no patient", encoding="utf-8")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("own", "own/cases", "own/cases/P1", "all/P1")]
    assert modes == [0o700, 0o700, 0o600, 0o666]
    assert stat.S_IMODE(tmp_path.stat().st_mode) != 0o600, "what a link leads to stays as it is"


def test_running_out_of_memory_is_not_reported_as_a_full_disk(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("itk::ERROR: Failed to allocate memory for image.")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    with pytest.raises(MemoryError):
        write_image(sitk.Image(2, 2, 2, sitk.sitkUInt8), tmp_path / "labels.nrrd")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
def test_names_that_are_not_utf8_are_refused_before_simpleitk_ends_the_process(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(OutputError, match="not valid UTF-8"), new_folder(tmp_path / name):
        raise AssertionError("the block must not run")
    with pytest.raises(OutputError, match="not valid UTF-8"):
        write_image(sitk.Image(2, 2, 2, sitk.sitkUInt8), tmp_path / f"{name}.nrrd")
    (tmp_path / name).mkdir()
    with pytest.raises(OutputError, match="not valid UTF-8"):
        write_image(sitk.Image(2, 2, 2, sitk.sitkUInt8), tmp_path / name / "a.nrrd")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_text_with_half_a_surrogate_pair_is_written(tmp_path):
    """As in the name of a model that a JSON file states as \\ud800."""
    write_json({"name": "a\ud800b"}, tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "a?b"}


def _allowed_to_mount(tmp_path: Path, *command: str) -> None:
    if sys.platform != "linux" or subprocess.run(["mount", *command], capture_output=True).returncode:
        pytest.skip("needs Linux and the right to mount")


@pytest.mark.parametrize("bind", [True, False])
def test_an_empty_mounted_folder_is_refused_before_the_work(bind: bool, tmp_path: Path) -> None:
    """A result cannot be renamed to it, as in ``docker run -v $PWD/out:/out ... dca segment -o /out``."""
    source, target = tmp_path / "source", tmp_path / "a mount"
    for folder in (source, target):
        folder.mkdir()
    _allowed_to_mount(tmp_path, *(("--bind", str(source)) if bind else ("-t", "tmpfs", "tmpfs")), str(target))
    try:
        with pytest.raises(OutputError, match=r"mounted.*such as .*a mount/result"), new_folder(target):
            pytest.fail("the work began")
        with new_folder(target / "result") as temporary:
            (temporary / "text").touch()
        assert [path.name for path in target.iterdir()] == ["result"]
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_the_empty_working_directory_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's shell would stay in the removed folder and see no result."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="such as"), new_folder(Path()):
        pytest.fail("the work began")


def test_a_folder_of_a_container_image_is_filled_or_the_result_is_kept(tmp_path: Path) -> None:
    """overlayfs refuses to move a folder of the image: EXDEV."""
    disk = tmp_path / "disk"
    disk.mkdir()
    _allowed_to_mount(tmp_path, "-t", "tmpfs", "tmpfs", str(disk))
    folders = {name: disk / name for name in ("image", "upper", "work", "merged")}
    try:
        for folder in folders.values():
            folder.mkdir()
        (folders["image"] / "empty").mkdir()
        (folders["image"] / "earlier").mkdir()
        (folders["image"] / "earlier" / "record").write_text("earlier")
        layers = f"lowerdir={folders['image']},upperdir={folders['upper']},workdir={folders['work']}"
        merged = folders["merged"]
        _allowed_to_mount(tmp_path, "-t", "overlay", "overlay", "-o", layers, str(merged))
        try:
            with new_folder(merged / "empty", keep_finished=True) as temporary:
                (temporary / "record").write_text("new")
            assert (merged / "empty" / "record").read_text() == "new"
            with (
                pytest.raises(OutputError, match=r"The finished result is in .*earlier-new-"),
                new_folder(merged / "earlier", True, "record", keep_finished=True) as temporary,
            ):
                (temporary / "record").write_text("new")
            assert (merged / "earlier" / "record").read_text() == "earlier"
            (kept,) = merged.glob("earlier-new-*")
            assert (kept / "record").read_text() == "new"
            assert not list(merged.glob(".*"))
        finally:
            subprocess.run(["umount", str(merged)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("keep", [True, False])
def test_a_finished_result_is_kept_if_another_program_took_its_name(keep: bool, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        pytest.raises(OutputError, match=r"already exists\. The finished result is in" if keep else "already exists"),
        new_folder(out, keep_finished=keep) as temporary,
    ):
        (temporary / "mine").touch()
        out.mkdir()
        (out / "theirs").touch()
    assert [path.name for path in out.iterdir()] == ["theirs"]
    assert [path.name for path in tmp_path.glob("out-new-*/*")] == ["mine"] * keep
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("open_folder", [new_folder, lambda path: temporary_folder(path.name, path.parent)])
def test_ctrl_c_right_after_a_folder_is_made_leaves_nothing(open_folder, tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def interrupted(self: Path, *args: Any, **options: Any) -> None:
        mkdir(self, *args, **options)
        if self.name.startswith("."):
            assert self.is_dir()
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with pytest.raises(KeyboardInterrupt), open_folder(tmp_path / "result"):
        pass
    assert names(tmp_path) == []


def test_a_file_that_the_new_folder_does_not_have_is_not_lost(tmp_path):
    """Without a list of the files of a result, those of the new folder count; the finished work is kept."""
    path = tmp_path / "result"
    for _ in range(2):
        with new_folder(path, overwrite=True, recognized_by="summary.json") as folder:
            (folder / "summary.json").write_text("{}")
    (path / "notes.txt").write_text("mine")
    with (
        pytest.raises(OutputError, match=r"not part of a result \(notes.txt\).*finished result is in") as error,
        new_folder(path, overwrite=True, recognized_by="summary.json") as folder,
    ):
        (folder / "summary.json").write_text("new")
    assert (path / "notes.txt").read_text() == "mine" and (path / "summary.json").read_text() == "{}"
    (kept,) = (each for each in tmp_path.iterdir() if each != path)
    assert (kept / "summary.json").read_text() == "new" and str(kept) in str(error.value)
