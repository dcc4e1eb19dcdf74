"""One real worker shared by many tests of the panel, because loading PyTorch takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="session")
def _shared_worker(_fake_slicer: Any) -> Iterator[list[Any]]:
    workers: list[Any] = []
    yield workers
    for worker in workers:
        worker.end()


@pytest.fixture
def warm_worker(module: Any, _shared_worker: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The module gets a worker that earlier tests have warmed. Stopped within a run it ends, as any other."""
    from DCASegmentationLib.worker_client import WorkerProcess

    class Lent(WorkerProcess):
        def stop(self) -> None:
            if self.isRunning:
                super().stop()

        def end(self) -> None:
            super().stop()

    def new_worker() -> Any:
        if not _shared_worker:
            from DCASegmentationLib.worker_client import LIBRARY_FOLDER, findPythonInterpreter

            program, environment = findPythonInterpreter()
            _shared_worker.append(Lent(program, LIBRARY_FOLDER, environment))
        return _shared_worker[0]

    monkeypatch.setattr("DCASegmentationLib.logic.createWorker", new_worker)
