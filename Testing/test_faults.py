"""The harness of faults, with a fixed seed and a bounded time; by hand it runs for hours, see Testing/faults."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks Linux which files are named")
def test_faults_lose_nothing_and_leave_nothing():
    command = [sys.executable, "-m", "Testing.faults", "--minutes", "1.7", "--seed", "1"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=os.environ, timeout=390)
    print(run.stdout, run.stderr)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "faults injected; 0 results lost or wrong, 0 with leftovers" in run.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks Linux which files are named")
def test_the_harness_sees_what_is_lost_and_what_is_left(tmp_path):
    """A program that writes in place, and one that never cleans: both must be found out."""
    program = """
        import sys, time
        from pathlib import Path
        from Testing.faults import running, workloads
        from Testing.faults.running import Harness
        from dcaseg import temp_paths as partials

        def careless(root, version):
            for name in ("text.txt", "record.json"):
                (root / name).write_text(version * 1000)

        def state(root):
            return workloads.one_state([workloads.which_text(root / name) for name in ("text.txt", "record.json")])

        def earlier(root):
            careless(root, "earlier")

        def unclean(root):
            partials.make_partial_path(root / "x").touch()
            careless(root, "new")

        running.all_workloads = lambda: [
            workloads.Workload("careless", earlier, lambda root: careless(root, "new"), state),
            workloads.Workload("unclean", earlier, unclean, state),
        ]
        harness = Harness(Path(sys.argv[1]), 1)
        harness.prepare()
        harness.sweep(time.monotonic() + 20)
        rows = harness.table.rows
        print(sum(row.lost for (name, _), row in rows.items() if name == "careless") > 0)
        print(sum(row.left for (name, _), row in rows.items() if name == "unclean") > 0)
    """
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines()), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=200,
    )
    assert run.stdout.split() == ["True", "True"], run.stderr


def test_an_injector_counts_what_changes_the_folder_and_nothing_else(tmp_path):
    program = """
        import os, shutil, sys
        from pathlib import Path
        from Testing.faults.injection import Injector
        root, other = Path(sys.argv[1]) / "in", Path(sys.argv[1]) / "out"
        for folder in (root, other):
            folder.mkdir()
        injector = Injector(root)
        injector.install()
        (other / "x").write_text("x")
        (root / "a").mkdir()
        (root / "a" / "b").write_text("x")
        (root / "a" / "b").read_text()
        (root / "a" / "b").rename(root / "c")
        (root / "a" / "d").touch()
        shutil.rmtree(root / "a")
        print(injector.count)
    """
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(line[8:] for line in program.splitlines()), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    # mkdir, open, rename, open, and of rmtree: unlink d, rmdir a.
    assert run.stdout.split() == ["6"]
