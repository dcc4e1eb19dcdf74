"""The output of ``dca``: no terminal commands, no encoding errors, and messages on what was saved."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from dcaseg.cli.console import (
    cancellation_message,
    escape_unprintable,
    make_table,
    prepare_streams,
    print_line,
    run_command,
    warn,
)
from dcaseg.errors import Cancelled, UserError
from dcaseg.user_folders import expand_user, get_home_folder, get_home_or_temporary

NASTY = "[red]a[/red]\x1b[2J\x07\r\u202eb\n"
AS_SHOWN = "[red]a[/red]\\x1b[2J\\x07\\r\\u202eb\\n"


def run(*arguments: object, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run ``dca`` in a process of its own. An environment variable with the value None is removed."""
    changed = {**os.environ, **{name: value for name, value in environment.items() if value is not None}}
    for name in (name for name, value in environment.items() if value is None):
        changed.pop(name, None)
    command = [sys.executable, "-m", "dcaseg.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=changed, timeout=300, errors="replace")


def test_control_characters_are_escaped_but_letters_of_any_script_are_not():
    assert escape_unprintable(NASTY) == AS_SHOWN
    assert escape_unprintable("Bäuche 肝臓 \u00a0 é") == "Bäuche 肝臓 \u00a0 é"
    assert escape_unprintable("\udce4.nii") == "\\udce4.nii", "a byte of a file name that is not text"


def test_text_is_never_interpreted_as_markup_or_terminal_command(capsys):
    print_line(NASTY)
    warn(NASTY)
    rows = make_table(NASTY, "Name")
    rows.add_row(NASTY)
    from dcaseg.cli.console import get_stdout_console

    get_stdout_console().print(rows, width=200)
    captured = capsys.readouterr()
    assert captured.out.count(AS_SHOWN) == 3
    assert "[red]a[/red]\\x1b[2J\\x07" in captured.err
    assert not {"\x1b", "\x07", "\u202e"} & {*captured.out, *captured.err}


def test_metadata_of_an_untrusted_bundle_is_escaped(dca, small_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle, bundle)
    metadata = bundle / "configs" / "metadata.json"
    text = metadata.read_text(encoding="utf-8")
    assert "Random weights: nothing it says is true." in text
    metadata.write_text(text.replace("Random weights: nothing it says is true.", "[b]x[/b]\\u001b[31m"), "utf-8")
    done = dca("bundle", "info", bundle)
    assert done.code == 0 and "\x1b" not in done.out
    assert "[b]x[/b]\\x1b[31m" in done.out.replace("\n", "")


def test_errors_and_tracebacks_are_escaped(dca, tmp_path):
    done = dca("--debug", "segment", tmp_path / "a\x1b[2J.nii.gz", "-o", tmp_path / "out")
    assert done.code == 2 and "\x1b" not in done.err and "a\\x1b[2J.nii.gz" in done.err


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", pytest.param("cp1252", marks=pytest.mark.slow)])
def test_characters_that_the_encoding_lacks_are_replaced(encoding, coarse_phantom, small_bundle, tmp_path):
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
    """The environment of a user without HOME and without an entry in the passwd file, as in some containers."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import pwd\ndef unknown(uid):\n    raise KeyError('getpwuid(): uid not found')\npwd.getpwuid = unknown\n"
    )
    path = os.pathsep.join([str(tmp_path / "site"), *sys.path])
    names = ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME")
    return {**dict.fromkeys(names), "PYTHONPATH": path, "TMPDIR": str(tmp_path)}


@pytest.mark.slow
def test_segment_works_without_a_home_folder(nobody, coarse_phantom, small_bundle, tmp_path):
    listed = run("bundle", "list", **nobody)
    assert listed.returncode == 0 and "dca-abdomen" in listed.stdout
    options = ("segment", coarse_phantom / "ct.nii.gz", "-o", tmp_path / "out", "--bundle", small_bundle, "--no-scene")
    for more in ((), ("--overwrite",)):
        done = run(*options, "--device", "cpu", *more, **nobody)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_cohort_works_without_a_home_folder(nobody, coarse_phantom, small_bundle, tmp_path):
    pytest.importorskip("highdicom", reason="the extra cohort is not installed")
    (tmp_path / "in").mkdir()
    shutil.copy(coarse_phantom / "ct.nii.gz", tmp_path / "in")
    options = ("--bundle", small_bundle, "--device", "cpu", "--workers", 1, "--dashboard-port", 0)
    done = run("cohort", tmp_path / "in", "-o", tmp_path / "out", *options, **nobody)
    assert done.returncode == 0 and "1 ok" in done.stdout, done.stderr


def test_missing_home_folder_is_replaced_by_a_private_one(monkeypatch, tmp_path):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(Path, "expanduser", lambda self: no_home())
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert get_home_folder() is None and expand_user("~/x") == Path("~/x")
    folder = get_home_or_temporary()
    assert folder.parent == tmp_path and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("Exception thrown in SimpleITK Resample: std::bad_alloc"),
        RuntimeError("itk::ERROR: ImageFileReader: Failed to allocate memory for image."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
        OSError(12, "Cannot allocate memory"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
    ids=str,
)
def test_out_of_memory_is_one_line(error, capsys):
    def fail():
        raise error

    assert run_command(fail) == 2
    assert capsys.readouterr().err.strip().startswith("Error: There is not enough memory.")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, Cancelled])
def test_canceled_command_says_what_was_saved(stop, capsys):
    def command():
        with cancellation_message(lambda: "3 of 7 are kept. Run it again."):
            raise stop

    assert run_command(command) == 130
    assert capsys.readouterr().err.strip() == "Canceled. 3 of 7 are kept. Run it again."

    def another():
        raise stop

    assert run_command(another) == 130
    assert "Completed output was kept" in capsys.readouterr().err


def test_ctrl_c_during_the_import_of_a_library_cancels_the_command(capsys):
    def interrupted_import():
        # What the import of OpenVINO sometimes does, whose C extension loses the KeyboardInterrupt.
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("initialization failed") from None

    def command(load):
        try:
            load()
        except ImportError as error:
            raise UserError(f"OpenVINO cannot be used: {error}.", "Install it.") from None

    def broken_import():
        raise ImportError("libtbb.so.12 is missing")

    assert run_command(lambda: command(interrupted_import)) == 130
    assert "Canceled." in capsys.readouterr().err
    # Without Ctrl+C, and in a later command of the same process, the error is the library's.
    assert run_command(lambda: command(broken_import)) == 2
    assert "libtbb.so.12 is missing" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_library_warnings_are_hidden_from_users(monkeypatch):
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    monkeypatch.setattr(sys, "warnoptions", [])
    with warnings.catch_warnings():
        prepare_streams()
        with warnings.catch_warnings(record=True) as seen:
            warnings.warn("old", FutureWarning, stacklevel=1)
        assert seen == [] and os.environ["PYTHONWARNINGS"] == "ignore"
    monkeypatch.delenv("PYTHONWARNINGS")


def test_canceled_segment_says_that_nothing_was_written(coarse_phantom, small_bundle, tmp_path, dca, monkeypatch):
    import dcaseg.inference.pipeline as job

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "segment_to_folder", stop)
    done = dca("segment", coarse_phantom / "ct.nii.gz", "-o", tmp_path / "out", "--bundle", small_bundle)
    assert (done.code, done.err.splitlines()[-1]) == (
        130,
        "Canceled. Nothing was written. To segment the CT, run the same command again.",
    )


def test_results_are_private_unless_shared(coarse_phantom, small_bundle, tmp_path, dca):
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


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_ends_a_command_like_ctrl_c_unless_nohup_started_it(ignored, capsys):
    from dcaseg.cli.console import run_command

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        code = run_command(lambda: signal.raise_signal(signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) is (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert code == (0 if ignored else 130)
    assert ("Canceled." in capsys.readouterr().err) is not ignored


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_while_the_program_starts_ends_it_without_a_traceback():
    """The moment is that of the import of all commands: it sends the signal itself."""
    program = """
        import builtins, os, signal, sys
        from dcaseg.cli import main
        original = builtins.__import__

        def importing(name, *arguments, **options):
            if name == "app" or name.endswith("cli.app"):
                os.kill(os.getpid(), signal.SIGINT)
            return original(name, *arguments, **options)

        builtins.__import__ = importing
        main(["--version"])
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert run.returncode == -signal.SIGINT
    assert run.stdout == run.stderr == ""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("moment", ["message", "shutdown"])
def test_a_second_ctrl_c_prints_no_traceback(moment):
    """One key press may arrive twice: a launcher forwards the Ctrl+C that its processes also got from the terminal."""
    program = """
        import atexit, os, signal, sys
        from dcaseg import cli
        from dcaseg.cli import app, console

        def interrupted():
            raise KeyboardInterrupt

        def again(*_, **__):
            os.kill(os.getpid(), signal.SIGINT)

        app.build_app = lambda: lambda **_: interrupted()
        if sys.argv.pop() == "message":
            console.print_error = again
        else:
            atexit.register(again)
        sys.exit(cli.main())
    """
    command = [sys.executable, "-c", textwrap.dedent(program), moment]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == (130 if moment == "message" else -signal.SIGINT)
    assert "Traceback" not in run.stderr and "Exception ignored" not in run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of POSIX")
@pytest.mark.parametrize("arguments", [["--help"], ["segment", "--help"], ["bundle", "list"]])
def test_a_reader_that_ends_early_is_no_error(arguments):
    """As with ``dca --help | head -1``."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        command = [sys.executable, "-m", "dcaseg.cli", *arguments]
        run = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (0, "")
