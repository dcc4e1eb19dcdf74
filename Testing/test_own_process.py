"""Settings of the command line and the worker before large libraries are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dcaseg.worker.protocol import Devices, FoundDevices, Hello, encode
from worker_client import MODULE_FOLDER, Worker, worker_environment

# Makes OpenMP print its settings at start.
DISPLAY_SETTINGS = {"OMP_DISPLAY_ENV": "true"}
SLEEP, TURN = "OMP_WAIT_POLICY = 'PASSIVE'", "OMP_WAIT_POLICY = 'ACTIVE'"


def openmp_output(code: list[str], **environment: str) -> str:
    given = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    variables = {**given, "PYTHONPATH": str(MODULE_FOLDER), **DISPLAY_SETTINGS, **environment}
    return subprocess.run([sys.executable, *code], env=variables, capture_output=True, text=True, check=False).stderr


@pytest.fixture(scope="module", autouse=True)
def openmp_settings():
    if SLEEP not in openmp_output(["-c", "import torch"], OMP_WAIT_POLICY="passive"):
        pytest.skip("the OpenMP of this PyTorch does not print its settings")


def segment(tmp_path: Path) -> list[str]:
    return ["-m", "dcaseg.cli", "segment", str(tmp_path / "none.nii.gz"), "-o", str(tmp_path / "out")]


@pytest.mark.slow
def test_idle_threads_sleep_in_dca_segment(tmp_path):
    said = openmp_output(segment(tmp_path))
    assert SLEEP in said
    assert "There is no file" in said


@pytest.mark.slow
def test_the_users_setting_for_idle_threads_stays(tmp_path):
    assert TURN in openmp_output(segment(tmp_path), OMP_WAIT_POLICY="active")


def test_idle_threads_sleep_in_the_worker():
    environment = worker_environment(**DISPLAY_SETTINGS)
    environment.pop("OMP_WAIT_POLICY", None)
    worker = Worker(environment)
    try:
        worker.write(encode(Devices("1")))
        # The worker sends Hello before the imports and the devices after them.
        answers = [type(worker.answer()) for _ in range(2)]
    finally:
        worker.close()
    assert answers == [Hello, FoundDevices]
    assert SLEEP in worker.errors.decode()


@pytest.mark.parametrize(
    ("own", "expected"), [({}, 1), ({"OPENBLAS_NUM_THREADS": "2"}, 2), ({"OMP_NUM_THREADS": "2"}, 2)]
)
def test_numpy_multiplies_in_one_thread_unless_the_user_sets_another_number(own, expected):
    pytest.importorskip("threadpoolctl")
    script = (
        "from dcaseg.inference.process_settings import importing\n"
        "with importing():\n"
        "    import numpy, threadpoolctl\n"
        "print(*[each['num_threads'] for each in threadpoolctl.threadpool_info()])\n"
    )
    given = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**given, "PYTHONPATH": str(MODULE_FOLDER), **own},
        capture_output=True,
        text=True,
        check=True,
    )
    if not run.stdout.strip():
        pytest.skip("this NumPy has no threads of its own")
    assert run.stdout.split() == [str(min(expected, os.cpu_count() or 1))]


def test_the_garbage_collector_is_on_after_the_imports(tmp_path):
    script = (
        "import gc; from dcaseg.inference.process_settings import importing\n"
        "try:\n"
        "    with importing():\n"
        "        assert not gc.isenabled()\n"
        "        import there_is_no_such_library\n"
        "except ImportError:\n"
        "    assert gc.isenabled()\n"
        "    print('as before')\n"
    )
    given = {**os.environ, "PYTHONPATH": str(MODULE_FOLDER)}
    run = subprocess.run([sys.executable, "-c", script], env=given, capture_output=True, text=True, check=False)
    assert run.stdout == "as before\n", run.stderr
