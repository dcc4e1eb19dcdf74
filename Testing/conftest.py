"""Fixtures for tests of the whole program: a small bundle, a small synthetic CT, and the command line."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# With two cores and small tensors, threads only slow each other down. Must be set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Measuring backends and converting models takes seconds. Only test_backends.py does it.
os.environ.setdefault("DCA_BACKEND", "eager")

import pytest

# Background jobs of a shell ignore Ctrl+C. Commands that a test starts must not inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_STARTED = pytest.StashKey[float]()

# Fixtures such as fake_slicer and module_widget, for tests of the Slicer module.
pytest_plugins = ["fake_slicer.fixtures", "warm_worker"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--time-budget", type=float, help="Skip the tests that would start after so many seconds.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STARTED] = time.monotonic()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out files without a test that needs slicer-core when only such tests run.

    Importing the others, with MONAI and all that they compare with, takes each process longer than most files run.
    """
    only_scene = re.search(r"(?<!not )\bscene\b", config.getoption("markexpr"))
    is_test_file = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    if only_scene and is_test_file and "mark.scene" not in collection_path.read_text(encoding="utf-8"):
        return True
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    budget = item.config.getoption("--time-budget")
    if budget is not None and time.monotonic() - item.config.stash[_STARTED] > budget:
        pytest.skip(f"the time budget of {budget:.0f} s is spent")


@dataclass(frozen=True)
class Run:
    """The result of a command: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def dca(capsys, monkeypatch, tmp_path) -> Callable[..., Run]:
    """Return a function that runs ``dca`` in this process, for a user without own models."""
    from dcaseg.cli import main

    monkeypatch.delenv("DCA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def run(*arguments: object) -> Run:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory) -> Path:
    """The folder of a bundle with random weights, for all organs of AMOS on a 12 mm grid."""
    from dcaseg.organs import AMOS
    from small_model import save_small_bundle, vivid_network

    return save_small_bundle(tmp_path_factory.mktemp("bundle") / "random-weights", vivid_network(len(AMOS)))


@pytest.fixture
def one_model(small_bundle, monkeypatch, tmp_path) -> None:
    """Make ``small_bundle`` the only model of the computer, for a user with an empty home folder."""
    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture(scope="session")
def coarse_phantom(tmp_path_factory) -> Path:
    """A folder with ``ct.nii.gz`` and ``labels.nii.gz`` of a synthetic person, 6 x 6 x 8 mm."""
    from dcaseg.imaging.writers import write_image
    from dcaseg.synthesis.phantom.case import generate

    folder = tmp_path_factory.mktemp("phantom")
    phantom = generate(3, spacing=(6.0, 6.0, 8.0), orientation="LPS")
    write_image(phantom.ct, folder / "ct.nii.gz")
    write_image(phantom.labels, folder / "labels.nii.gz")
    return folder
