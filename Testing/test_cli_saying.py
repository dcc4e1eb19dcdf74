"""What ``dca`` prints: nothing that a terminal obeys, nothing that fails for a letter, and what was saved."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from dcaseg.cli.console import exit_code_of, prepare_streams, say, says_when_cancelled, shown, table, warn
from dcaseg.errors import Cancelled
from dcaseg.user_folders import expanded, home_folder, home_or_temporary

NASTY = "[red]a[/red]\x1b[2J\x07\r\u202eb\n"
AS_SHOWN = "[red]a[/red]\\x1b[2J\\x07\\r\\u202eb\\n"


def run(*arguments: object, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """``dca`` as a process of its own; an environment variable that is None is taken out."""
    changed = {**os.environ, **{name: value for name, value in environment.items() if value is not None}}
    for name in (name for name, value in environment.items() if value is None):
        changed.pop(name, None)
    command = [sys.executable, "-m", "dcaseg.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=changed, timeout=300, errors="replace")


def test_control_characters_are_escapes_and_letters_of_any_script_stay():
    assert shown(NASTY) == AS_SHOWN
    assert shown("Bäuche 肝臓 \u00a0 é") == "Bäuche 肝臓 \u00a0 é"
    assert shown("\udce4.nii") == "\\udce4.nii", "a byte of a file name that is no text"


def test_no_text_is_markup_or_a_command_to_the_terminal(capsys):
    say(NASTY)
    warn(NASTY)
    rows = table(NASTY, "Name")
    rows.add_row(NASTY)
    from dcaseg.cli.console import output

    output().print(rows, width=200)
    captured = capsys.readouterr()
    assert captured.out.count(AS_SHOWN) == 3
    assert "[red]a[/red]\\x1b[2J\\x07" in captured.err
    assert not {"\x1b", "\x07", "\u202e"} & {*captured.out, *captured.err}


def test_what_a_strangers_bundle_says_of_itself_is_shown_as_it_is(dca, small_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    metadata = bundle / "configs" / "metadata.json"
    text = metadata.read_text(encoding="utf-8")
    assert "Random weights: nothing it says is true." in text
    metadata.write_text(text.replace("Random weights: nothing it says is true.", "[b]x[/b]\\u001b[31m"), "utf-8")
    done = dca("bundle", "info", bundle)
    assert done.code == 0 and "\x1b" not in done.out
    assert "[b]x[/b]\\x1b[31m" in done.out.replace("\n", "")


def test_errors_and_tracebacks_escape_too(dca, tmp_path):
    done = dca("--debug", "segment", tmp_path / "a\x1b[2J.nii.gz", "-o", tmp_path / "out")
    assert done.code == 2 and "\x1b" not in done.err and "a\\x1b[2J.nii.gz" in done.err


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_that_cannot_encode_a_name_replaces_letters(encoding, coarse_phantom, small_bundle, tmp_path):
    ct = tmp_path / "肝臓 Bäuche.nii.gz"
    shutil.copy(coarse_phantom / "ct.nii.gz", ct)
    out = tmp_path / "腎臓"
    done = run(
        *("segment", ct, "-o", out, "--bundle", small_bundle, "--device", "cpu", "--no-scene"),
        PYTHONIOENCODING=encoding,
    )
    assert done.returncode == 0, done.stderr
    assert "The results are in" in done.stdout and "??" in done.stdout
    assert (out / "labels.nrrd").is_file()


@pytest.fixture
def nobody(tmp_path) -> dict[str, str | None]:
    """The environment of a user without HOME and without an entry in the passwd file, as in a container."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import pwd\ndef unknown(uid):\n    raise KeyError('getpwuid(): uid not found')\npwd.getpwuid = unknown\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME")
    return {**dict.fromkeys(names), "PYTHONPATH": path, "TMPDIR": str(tmp_path)}


def test_without_a_home_the_shipped_model_is_found_and_a_ct_segmented(nobody, coarse_phantom, small_bundle, tmp_path):
    listed = run("bundle", "list", **nobody)
    assert listed.returncode == 0 and "dca-abdomen" in listed.stdout
    options = ("segment", coarse_phantom / "ct.nii.gz", "-o", tmp_path / "out", "--bundle", small_bundle, "--no-scene")
    for more in ((), ("--overwrite",)):
        done = run(*options, "--device", "cpu", *more, **nobody)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_a_home_a_cohort_runs(nobody, coarse_phantom, small_bundle, tmp_path):
    pytest.importorskip("highdicom", reason="the extra cohort is not installed")
    (tmp_path / "in").mkdir()
    shutil.copy(coarse_phantom / "ct.nii.gz", tmp_path / "in")
    options = ("--bundle", small_bundle, "--device", "cpu", "--workers", 1, "--dashboard-port", 0)
    done = run("cohort", tmp_path / "in", "-o", tmp_path / "out", *options, **nobody)
    assert done.returncode == 0 and "1 ok" in done.stdout, done.stderr


def test_a_home_that_there_is_not_is_one_of_our_own_that_others_cannot_write(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "expanduser", lambda self: no_home())
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert home_folder() is None and expanded("~/x") == Path("~/x")
    folder = home_or_temporary()
    assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Exception thrown in SimpleITK Resample: std::bad_alloc"),
        RuntimeError("itk::ERROR: ImageFileReader: Failed to allocate memory for image."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
        OSError(12, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_memory_that_runs_out_anywhere_is_one_line(error, capsys):
    def fail():
        raise error

    assert exit_code_of(fail) == 2
    assert capsys.readouterr().err.strip().startswith("Error: There is not enough memory.")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled])
def test_a_cancelled_command_says_what_was_saved(stop, capsys):
    def command():
        with says_when_cancelled(lambda: "3 of 7 are kept. Run it again."):
            raise stop

    assert exit_code_of(command) == 130
    assert capsys.readouterr().err.strip() == "Cancelled. 3 of 7 are kept. Run it again."

    def another():
        raise stop

    assert exit_code_of(another) == 130
    assert "What is complete was kept" in capsys.readouterr().err


def test_warnings_of_libraries_stay_away_from_users(monkeypatch):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        prepare_streams()
        with warnings.catch_warnings(record=True) as seen:
            warnings.warn("old", FutureWarning, stacklevel=1)
        assert seen == [] and os.environ["PYTHONWARNINGS"] == "ignore"
    monkeypatch.delenv("PYTHONWARNINGS")


def test_a_case_is_cancelled_with_a_word_on_what_was_there(coarse_phantom, small_bundle, tmp_path, dca, monkeypatch):
    import dcaseg.inference.pipeline as job

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "segment_to_folder", stop)
    done = dca("segment", coarse_phantom / "ct.nii.gz", "-o", tmp_path / "out", "--bundle", small_bundle)
    assert (done.code, done.err.splitlines()[-1]) == (
        130,
        "Cancelled. Nothing was written. To segment the CT, run the same command again.",
    )


def test_results_are_private_unless_they_are_shared(coarse_phantom, small_bundle, tmp_path, dca):
    before = os.umask(0o022)
    try:
        options = ("segment", coarse_phantom / "ct.nii.gz", "--bundle", small_bundle, "--device", "cpu", "--no-scene")
        assert dca(*options, "-o", tmp_path / "own", "--organs", "liver,spleen").code == 0
        assert dca(*options, "-o", tmp_path / "all", "--shared").code == 0
    finally:
        os.umask(before)

    def modes(folder: Path) -> set[str]:
        return {oct(stat.S_IMODE(each.stat().st_mode)) for each in [folder, *folder.rglob("*")]}

    assert modes(tmp_path / "own") == {"0o700", "0o600"}
    assert modes(tmp_path / "all") == {"0o755", "0o644"}
    request = json.loads((tmp_path / "own" / "request.json").read_text(encoding="utf-8"))
    assert request["options"]["organs"] == ["liver", "spleen"]
    table = (tmp_path / "own" / "volumes.csv").read_text(encoding="utf-8")
    assert "bladder" not in table and "liver" in table
