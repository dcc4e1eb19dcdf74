"""Leftovers of ended processes are removed or restored; files of running processes stay."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dcaseg import temp_paths
from dcaseg.imaging import writers
from dcaseg.imaging.writers import exchange, new_folder, temporary_folder, write_text
from dcaseg.temp_paths import clean, make_backup_path, make_partial_path, remove_traces, replacing

SECONDS_OF_A_WEEK = 7 * 24 * 3600


@pytest.fixture(autouse=True)
def _as_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process cleans a folder at most once a minute; each test starts like a new process."""
    monkeypatch.setattr(temp_paths, "_cleaned", {})


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def killed(program: str, *arguments: object) -> None:
    """Run ``program``, which kills its own process."""
    imports = (
        "import os, sys\nfrom pathlib import Path\nfrom dcaseg.imaging import writers\n"
        "from dcaseg.imaging.writers import *\nfrom dcaseg.temp_paths import *\n"
        "end = lambda: os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", imports + textwrap.dedent(program), *map(str, arguments)])
    assert done.returncode == -9


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    for content in ("1", "2"):
        with replacing(path) as part:
            part.write_text(content, encoding="utf-8")
        assert path.read_text(encoding="utf-8") == content
    with pytest.raises(ZeroDivisionError), replacing(path) as part:
        part.write_text("incomp", encoding="utf-8")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "2" and names(tmp_path) == ["scores.csv"]


def test_files_are_flushed_as_windows_requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' FlushFileBuffers fails for a file that is not open for writing."""
    fcntl = pytest.importorskip("fcntl")
    flush, flushed = os.fsync, []

    def fsync(descriptor: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flush(descriptor)
        flushed.append(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_text("1", tmp_path / "labels.txt")
    assert (tmp_path / "labels.txt").read_text(encoding="utf-8") == "1" and len(flushed) == 1


def test_leftovers_of_a_killed_process_are_removed_by_the_next_one(tmp_path: Path) -> None:
    killed(
        """
        with new_folder(Path(sys.argv[1]) / "out") as folder, temporary_folder("surfaces", folder.parent):
            write_text("1", folder / "labels.txt")
            make_partial_path(folder.parent / "labels.nrrd", ".nrrd").touch()
            end()
        """,
        tmp_path,
    )
    assert len(names(tmp_path)) == 3
    write_text("2", tmp_path / "other.txt")
    assert names(tmp_path) == ["other.txt"]


def test_files_of_a_running_process_stay(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from dcaseg.imaging.writers import new_folder
        with new_folder(Path(sys.argv[1]) / "out") as folder:
            print("begun", flush=True)
            sys.stdin.readline()
            (folder / "labels.txt").touch()
    """
    command = [sys.executable, "-c", textwrap.dedent(program), tmp_path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as living:
        assert living.stdout is not None and living.stdin is not None
        living.stdout.readline()
        with pytest.raises(writers.OutputError, match="already exists"), new_folder(tmp_path / "out") as mine:
            (mine / "labels.txt").touch()
            living.communicate("go on\n")
    assert living.returncode == 0
    assert names(tmp_path) == ["out"]


def test_leftovers_of_another_machine_stay_for_a_week(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(temp_paths, "_get_owner_id", lambda pid: "0badcafe-4242-1f")
        for name in ("new", "old"):
            make_partial_path(tmp_path / name).mkdir()
    (old,) = tmp_path.glob(".old.*")
    os.utime(old, (0, old.stat().st_mtime - SECONDS_OF_A_WEEK - 60))
    clean(tmp_path)
    assert [name[:5] for name in names(tmp_path)] == [".new."]


def test_the_only_writer_of_a_folder_removes_leftovers_of_other_machines(tmp_path: Path, monkeypatch, caplog) -> None:
    """A cohort's workers may run on any machine; here one was killed between the two renames of a replacement."""
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(temp_paths, "_get_owner_id", lambda pid: "0badcafe-4242-1f")
        for hidden, content in (
            (make_partial_path(tmp_path / "a"), "new"),
            (make_backup_path(tmp_path / "a"), "earlier"),
        ):
            hidden.mkdir()
            (hidden / "labels.txt").write_text(content)
        make_partial_path(tmp_path / "b").mkdir()
    clean(tmp_path)
    assert len(names(tmp_path)) == 3
    clean(tmp_path, only_writer=True)
    assert names(tmp_path) == ["a"]
    assert (tmp_path / "a" / "labels.txt").read_text() == "earlier"
    assert "restored to" in caplog.text


def test_a_reused_process_id_is_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system does not say when a process started")
    with monkeypatch.context() as earlier:
        earlier.setattr(temp_paths, "_get_owner_id", lambda pid: f"{temp_paths._get_machine_id()}-{os.getpid()}-1")
        make_partial_path(tmp_path / "out").mkdir()
    make_partial_path(tmp_path / "mine").mkdir()
    clean(tmp_path)
    assert [name[:6] for name in names(tmp_path)] == [".mine."]


@pytest.mark.parametrize("moment", ["before the first rename", "between the renames", "after the second rename"])
def test_killed_while_replacing_a_result_in_two_steps(moment: str, tmp_path: Path, caplog) -> None:
    """As on a network file system: afterwards, only the earlier or the new result exists, and it is complete."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels.txt").write_text("earlier")
    killed(
        """
        writers.exchange = lambda one, other: False
        rename, left = Path.rename, [int(sys.argv[2])]
        def counted(path, target):
            if not left[0]:
                end()
            left[0] -= 1
            return rename(path, target)
        Path.rename = counted
        rmtree, writers.shutil.rmtree = writers.shutil.rmtree, lambda *_, **__: end()
        with new_folder(Path(sys.argv[1]) / "out", overwrite=True) as folder:
            (folder / "labels.txt").write_text("new")
        """,
        tmp_path,
        ["before the first rename", "between the renames", "after the second rename"].index(moment),
    )
    with caplog.at_level(logging.WARNING):
        clean(tmp_path)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "labels.txt").read_text() == ("new" if moment.startswith("after") else "earlier")
    expected = f"restored to {tmp_path / 'out'}"
    assert [expected in line for line in caplog.messages] == [True] * moment.startswith("between")


def test_a_result_that_was_moved_aside_is_restored_if_nothing_replaced_it(tmp_path: Path, monkeypatch) -> None:
    long = "ö" * 120
    with monkeypatch.context() as earlier:
        earlier.setattr(temp_paths, "_get_owner_id", lambda pid: f"{temp_paths._get_machine_id()}-{os.getpid()}-1")
        for name in ("lost", "replaced", long):
            make_backup_path(tmp_path / name).mkdir()
    (tmp_path / "replaced").mkdir()
    (tmp_path / long).mkdir()
    clean(tmp_path)
    assert names(tmp_path) == ["lost", "replaced", long]


def test_a_restored_result_never_replaces_a_later_one(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as earlier:
        earlier.setattr(temp_paths, "_get_owner_id", lambda pid: f"{temp_paths._get_machine_id()}-{os.getpid()}-1")
        for hidden, content in (
            (make_partial_path(tmp_path / "out"), "new"),
            (make_backup_path(tmp_path / "out"), "earlier"),
        ):
            hidden.mkdir()
            (hidden / "labels.txt").write_text(content)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels.txt").write_text("of another program")
    clean(tmp_path)
    (kept,) = tmp_path.glob("out-before-*")
    assert names(tmp_path) == ["out", kept.name]
    assert (kept / "labels.txt").read_text() == "earlier"
    assert (tmp_path / "out" / "labels.txt").read_text() == "of another program"


def test_an_exchange_is_one_step_and_the_earlier_result_is_never_missing(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    if not exchange(tmp_path / "new", tmp_path / "new"):
        pytest.skip("this file system cannot exchange two folders")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "labels.txt").write_text("earlier")
    program = """
        writers.replaced_name = lambda path: end()
        writers.shutil.rmtree = lambda *_, **__: end()
        with new_folder(Path(sys.argv[1]) / "out", overwrite=True) as folder:
            (folder / "labels.txt").write_text("new")
    """
    killed(program, tmp_path)
    assert (tmp_path / "out" / "labels.txt").read_text() == "new"
    clean(tmp_path)
    assert names(tmp_path) == ["new", "out"]


def test_long_names_leave_room_for_the_hidden_name(tmp_path: Path) -> None:
    long = tmp_path / ("ö" * 120)
    with new_folder(long) as folder:
        (folder / "labels.txt").touch()
    write_text("1", tmp_path / ("x" * 250))
    assert names(tmp_path) == ["x" * 250, "ö" * 120]


@pytest.mark.parametrize("maker", ["this process", "another program", "nobody"])
def test_a_finished_result_is_removed_only_by_its_process(maker: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if maker != "nobody":
        (out / "request.json").write_text(json.dumps({"process": os.getpid() + (maker != "this process")}))
    make_partial_path(out).mkdir()
    remove_traces(out, os.getpid())
    assert names(tmp_path) == ([] if maker == "this process" else ["out"])


def test_a_result_of_a_process_with_the_same_number_stays(tmp_path: Path) -> None:
    """On another computer, in another container (where each worker has the number 7), or before a restart."""
    machine, pid, start = temp_paths.process_id().split("-")
    out = tmp_path / "out"
    others = [f"0badcafe-{pid}-{start}", *([] if start == "0" else [f"{machine}-{pid}-1"])]
    for process in (*others, temp_paths.process_id()):
        out.mkdir(exist_ok=True)
        (out / "request.json").write_text(json.dumps({"process": process}))
        remove_traces(out, os.getpid())
        assert out.exists() == (process in others)


def test_other_hidden_files_are_not_touched(tmp_path: Path) -> None:
    others = [".git", ".out.partial-12345678", ".bashrc", ".x.partial-1-2-3-4", "out.partial-0badcafe-1-1-0badcafe"]
    for name in others:
        (tmp_path / name).mkdir()
    clean(tmp_path)
    assert names(tmp_path) == sorted(others)


def test_a_temporary_folder_is_private_and_a_missing_parent_is_reported(tmp_path: Path, monkeypatch) -> None:
    with temporary_folder("links", tmp_path) as folder:
        assert folder.stat().st_mode & 0o077 == 0
    assert names(tmp_path) == []
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(writers.OutputError, match="TMPDIR"), temporary_folder("links"):
        pass
