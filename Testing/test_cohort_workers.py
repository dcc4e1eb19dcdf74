"""The number of workers and the share of the machine that each may use."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
import urllib.request

import pytest

pytest.importorskip("distributed", reason="the extra cohort is not installed")

import psutil
from distributed import Client, LocalCluster, Security

from dcaseg.cohort import dask_workers as module
from dcaseg.cohort.case import OK, Outcome
from dcaseg.cohort.dask_workers import LocalWorkers, local_client
from dcaseg.errors import UserError

GIB = 2**30


@pytest.fixture
def machine(monkeypatch):
    """Sets how many cores and how much memory (bytes) this machine seems to have."""

    def has(cores: int, memory: int) -> None:
        monkeypatch.setattr(module, "_count_cores", lambda: cores)
        monkeypatch.setattr(module.psutil, "virtual_memory", lambda: type("Memory", (), {"total": memory}))

    return has


def test_each_gpu_gets_a_worker_and_the_cores_are_divided(machine):
    machine(32, 256 * GIB)
    planned = LocalWorkers.plan(None, 4)
    assert (planned.count, planned.threads, planned.gpus) == (4, 8, True)
    with pytest.raises(UserError, match="5 workers are too many for 4 GPUs"):
        LocalWorkers.plan(5, 4)


@pytest.mark.parametrize(
    ("cores", "gib", "count", "threads"), [(2, 23, 1, 2), (16, 256, 4, 4), (16, 16, 2, 8), (64, 4, 1, 64)]
)
def test_without_a_gpu_cores_and_memory_limit_the_workers(cores, gib, count, threads, machine):
    machine(cores, gib * GIB)
    planned = LocalWorkers.plan(None, 0)
    assert (planned.count, planned.threads, planned.gpus) == (count, threads, False)
    assert planned.memory_bytes * planned.count <= 0.9 * gib * GIB


def test_a_given_number_of_workers_divides_cores_and_memory(machine):
    machine(8, 100 * GIB)
    planned = LocalWorkers.plan(3, 0)
    assert (planned.count, planned.threads) == (3, 2)
    assert LocalWorkers.plan(3, 0, 7 * GIB).memory_bytes == 7 * GIB


@pytest.mark.parametrize(
    ("visible", "seen"), [("", ["0", "1"]), ("3,5", ["3", "5"]), ("GPU-a,GPU-b", ["GPU-a", "GPU-b"])]
)
def test_each_worker_sees_its_own_gpu(visible, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    two = LocalWorkers(2, 4, 8 * GIB, gpus=True)
    environments = [module._make_worker_spec(two, index)["options"]["env"] for index in range(2)]
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in environments] == seen


@pytest.mark.slow
def test_a_worker_uses_its_share_of_the_cores_whatever_the_program_uses(monkeypatch):
    # One of two cores, since PyTorch never uses more than the machine has.
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with local_client(LocalWorkers(1, 1, 2 * GIB), 0) as client:
        (threads,) = client.run(_threads).values()
    assert threads == (1, 1)


def _recurring(dask_worker) -> list[str]:
    """Names of Dask's periodic callbacks in this worker."""
    return list(dask_worker.periodic_callbacks)


def _threads() -> tuple[int, int]:
    """Numbers of threads of PyTorch and ITK in this process."""
    import SimpleITK as sitk
    import torch

    return torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()


def test_nobody_else_can_connect_to_the_workers_and_no_page_is_served():
    with local_client(LocalWorkers(1, 1, 2 * GIB)) as client:
        address = client.scheduler.address
        assert address.startswith("tls://127.0.0.1:")
        assert client.dashboard_link == ""
        for stranger in (address.replace("tls", "tcp"), address):
            with pytest.raises(OSError):
                Client(stranger, timeout="3s", security=Security.temporary() if stranger == address else None)
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        listening = [
            connection.laddr
            for process in processes
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert len(listening) >= 3
        assert {address.ip for address in listening} == {"127.0.0.1"}
        for port in (address.port for address in listening):
            with pytest.raises((OSError, http.client.HTTPException)):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=3)


@pytest.mark.slow
def test_workers_have_no_profiler_and_the_optional_dashboard_answers_only_to_its_own_name():
    with local_client(LocalWorkers(1, 1, 2 * GIB), 0) as client:
        (recurring,) = client.run(_recurring).values()
        assert "heartbeat" in recurring
        assert not [name for name in recurring if name.startswith("profile")]
        port = int(client.dashboard_link.rpartition(":")[2].split("/")[0])
        own = f"127.0.0.1:{port}"
        for headers, expected in (
            ({"Host": own}, 200),
            ({"Host": f"localhost:{port}", "Origin": f"http://{own}"}, 200),
            ({"Host": "evil.example"}, 403),
            ({"Host": own, "Origin": "http://evil.example"}, 403),
        ):
            for page in ("/health", "/status", "/json/counts.json"):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
                connection.request("GET", page, headers=headers)
                assert connection.getresponse().status == expected, (headers, page)
                connection.close()


@pytest.mark.slow
def test_a_worker_that_dask_has_given_up_is_replaced(monkeypatch):
    monkeypatch.setattr(module, "_RESTART_SECONDS", 0)
    with local_client(LocalWorkers(2, 1, 2 * GIB)) as client:
        client.wait_for_workers(2, timeout=60)
        lost = next(iter(client.run(os.getpid).values()))
        os.kill(lost, signal.SIGKILL)
        deadline = time.monotonic() + 120
        while lost in (pids := set(client.run(os.getpid, on_error="ignore").values())) or len(pids) < 2:
            assert time.monotonic() < deadline, pids
            module.replace_lost_workers(client)
            time.sleep(1)


BOTH_RUN = threading.Barrier(2, timeout=30)


def answer_together(case, settings):
    """A worker's answer that names the file, after two tasks have begun."""
    BOTH_RUN.wait()
    return Outcome(case.key, OK, reason=case.files[0])


def test_two_cohorts_on_one_scheduler_do_not_get_each_others_results(tmp_path, monkeypatch):
    """Their CTs have the same path in their folders, and so the same key, and their tasks run at the same time."""
    from dcaseg.cohort import dispatch
    from dcaseg.cohort.case import Settings
    from dcaseg.cohort.discovery import find
    from dcaseg.dicom.archive import Rules
    from dcaseg.inference.options import SegmentOptions

    monkeypatch.setattr(dispatch, "process", answer_together)
    results = {}

    def run(name, address):
        file = tmp_path / name / "patient1" / "ct.nii.gz"
        file.parent.mkdir(parents=True)
        file.write_bytes(name.encode())
        cases = find(tmp_path / name, tmp_path / f"out-{name}", Rules()).cases
        settings = Settings(str(tmp_path / f"out-{name}"), "model", "0" * 64, SegmentOptions())
        with Client(address, set_as_default=False) as client:
            (results[name],) = dispatch.process_cases(client, cases, settings, lambda running: None)

    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        threads = [threading.Thread(target=run, args=(name, cluster.scheduler_address)) for name in ("a", "b")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert {name: outcome.reason.split("/")[-3] for name, outcome in results.items()} == {"a": "a", "b": "b"}
