"""The processes that do the work: workers of this machine, or those of a Dask scheduler somewhere.

Whoever reaches a Dask scheduler or worker can run any code there. So those of this machine listen on loopback, encrypt,
and answer only to who has the certificate of this run, which exists in the memory of its processes alone: other users
of the machine do not. Nothing listens for browsers unless the dashboard is asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Client, Nanny, Scheduler, Security, SpecCluster, Worker
from distributed.http.routing import RoutingApplication
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.web import ErrorHandler

from ..errors import UserError, how_to_install, root_cause
from ..inference.process_settings import sleeping_threads

_LOOPBACK = "127.0.0.1"
_PROTOCOL = "tls://"
# What the machine keeps for itself and this program.
_SHARE_OF_MEMORY = 0.9
_CORES_PER_WORKER = 4
_BYTES_PER_WORKER = 6e9
_PATIENCE = "30s"
# On a machine that is busy with other things a Python process may take minutes to begin.
_START_SECONDS = 300
# After this time a worker that was killed and is not there again is given up, and another one started. Dask's own 15 s
# are too short where loading PyTorch takes as long, and then nothing would take its place.
_SECONDS_TO_COME_BACK = 60


@dataclass(frozen=True)
class LocalWorkers:
    """Worker processes of this machine: ``count``, the ``threads`` of each, its memory, and a GPU each if ``gpus``."""

    count: int
    threads: int
    memory_bytes: int
    gpus: bool = False

    @classmethod
    def planned(cls, count: int | None, gpus: int, memory_bytes: int | None = None) -> LocalWorkers:
        """One for each of ``gpus``, else for so many cores and so much memory; or ``count``, cores divided."""
        cores, memory = _cores(), psutil.virtual_memory().total * _SHARE_OF_MEMORY
        chosen = count or gpus or max(1, min(cores // _CORES_PER_WORKER, int(memory / _BYTES_PER_WORKER)))
        if gpus and chosen > gpus:
            raise UserError(f"{chosen} workers are more than the {gpus} GPUs.", f"Give --workers {gpus} or less.")
        return cls(chosen, max(1, cores // chosen), memory_bytes or int(memory / chosen), bool(gpus))


class _WithoutPages:
    """A server of Dask that has no pages for browsers."""

    def start_http_server(self, routes: Any, *_: Any, **__: Any) -> None:
        # Dask stops it at the end, so there is one; but it listens nowhere.
        self.http_application = RoutingApplication(routes)
        self.http_server = HTTPServer(self.http_application)


class _Scheduler(_WithoutPages, Scheduler):
    pass


class _Worker(_WithoutPages, Worker):
    pass


class _SchedulerWithDashboard(Scheduler):
    """Answers browsers only where they show a page of this machine: one from elsewhere cannot lead them here."""

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        super().start_http_server(*arguments, **options)
        application = self.http_application
        find_handler = application.find_handler
        own = {f"{name}:{self.http_server.port}" for name in (_LOOPBACK, "localhost")}

        def find_if_own(request: HTTPServerRequest, **more: Any) -> Any:
            origin = request.headers.get("Origin")
            if request.host in own and (origin is None or origin.removeprefix("http://") in own):
                return find_handler(request, **more)
            return application.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

        application.find_handler = find_if_own


@contextmanager
def local_client(workers: LocalWorkers, dashboard_port: int | None = None) -> Iterator[Client]:
    """Worker processes on this machine, which nobody else can use; they end with this process, however it ends.

    With ``dashboard_port``, Dask's dashboard listens there, on loopback; 0 is any free port. A worker that is killed
    comes back or is replaced, see ``replace_lost_workers``. Raises UserError where they do not start.
    """
    quiet = {"logging": {"distributed": "critical"}}
    settings = {**_steady_memory(), **_one_arena(), **quiet, **_restarts(), **_no_profile(), **_pages(dashboard_port)}
    with dask.config.set(settings), _quiet():
        cluster = _local_cluster(workers, dashboard_port)
        try:
            with Client(cluster, timeout=_PATIENCE) as client:
                yield client
        finally:
            cluster.close(timeout=10)


def replace_lost_workers(client: Client) -> None:
    """Start new workers on this machine in the place of those that Dask has given up; elsewhere nothing is done.

    Dask starts a killed worker again, but gives it up where that fails or takes longer than _SECONDS_TO_COME_BACK.
    """
    cluster = client.cluster
    if isinstance(cluster, SpecCluster):
        # As many as there should be: those that are missing are started.
        cluster.scale(len(cluster.worker_spec))


def _local_cluster(workers: LocalWorkers, dashboard_port: int | None) -> SpecCluster:
    try:
        security = Security.temporary()
    except ImportError:
        raise UserError(
            "Cohorts need a package that is not installed: cryptography.",
            f"Install it: {how_to_install('cryptography')}",
        ) from None
    options: dict[str, Any] = {"host": _LOOPBACK, "port": 0, "protocol": _PROTOCOL, "security": security}
    scheduler = {"cls": _Scheduler, "options": {**options, "dashboard": False}}
    if dashboard_port is not None:
        address = f"{_LOOPBACK}:{dashboard_port}"
        scheduler = {"cls": _SchedulerWithDashboard, "options": {**options, "dashboard_address": address}}
    try:
        return SpecCluster(
            workers={index: _local_worker(workers, index, security) for index in range(workers.count)},
            scheduler=scheduler,
            security=security,
            silence_logs=logging.CRITICAL,
        )
    # Dask lets out whatever a start that took too long, or a process that died in it, led to.
    except Exception as error:
        raise UserError(
            f"The worker processes did not start within {_START_SECONDS} s, or ended at once ({root_cause(error)}).",
            "Wait until the machine is less busy, or give fewer --workers.",
        ) from error


@contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """The workers of the Dask scheduler at ``address``. Raises UserError where it does not answer or has none."""
    with _quiet():
        try:
            client = Client(address, timeout=_PATIENCE)
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(
                f"The Dask scheduler {address} does not answer ({type(error).__name__}).",
                "Give its address, such as tcp://head-node:8786, and check that it runs.",
            ) from None
        with client:
            _require_able_workers(client)
            yield client


def _local_worker(workers: LocalWorkers, index: int, security: Security | None = None) -> dict[str, Any]:
    threads = str(workers.threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**dict.fromkeys(names, threads), "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads}
    environment |= sleeping_threads()
    if workers.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = _visible_gpu(index)
    return {
        "cls": Nanny,
        "options": {
            "host": _LOOPBACK,
            "protocol": _PROTOCOL,
            "security": security,
            "worker_class": _Worker,
            # One case in the network, one being read or written.
            "nthreads": 2,
            "memory_limit": workers.memory_bytes,
            "env": environment,
            "death_timeout": _START_SECONDS,
            "silence_logs": logging.CRITICAL,
        },
    }


def _visible_gpu(index: int) -> str:
    """The ``index``-th of the GPUs this process may use, as its number or UUID."""
    told = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return told[index] if told else str(index)


def _require_able_workers(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=60)
    except TimeoutError:
        raise UserError("The Dask scheduler has no workers.", "Start some: dask worker ADDRESS --nthreads 2.") from None
    here = installed_version()
    unable = [address for address, told in client.run(installed_version, on_error="return").items() if told != here]
    if unable:
        raise UserError(
            f"{len(unable)} of the workers lack this program in version {here} ({unable[0]} is one).",
            "Install this version, with its extra cohort, on all of them.",
        )


def require_shared_folders(client: Client, folders: list[str]) -> None:
    """Raises UserError where a worker does not see one of ``folders``."""
    for folder in folders:
        blind = [address for address, sees in client.run(_sees, folder).items() if not sees]
        if blind:
            raise UserError(
                f"{len(blind)} of the workers do not see {folder} ({blind[0]} is one).",
                "Input, output and model must lie on storage that all machines mount under the same path.",
            )


def installed_version() -> str:
    """The version of this program in this process."""
    try:
        return version("dca-segmentation")
    except PackageNotFoundError:
        return "not installed"


def _sees(folder: str) -> bool:
    return Path(folder).exists()


def _steady_memory() -> dict[str, Any]:
    """Workers hold no results that could be spilled; one above its limit is ended and started anew."""
    memory = "distributed.worker.memory"
    return {f"{memory}.target": False, f"{memory}.spill": False, f"{memory}.pause": False, f"{memory}.terminate": 0.95}


def _one_arena() -> dict[str, Any]:
    """glibc keeps freed memory of its main arena alone (``inference.process_settings``); threads else have others."""
    return {"distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1}


def _restarts() -> dict[str, Any]:
    """A case whose worker was ended is tried once more beside others; then ``dispatch`` gives it a worker alone."""
    return {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.deploy.lost-worker-timeout": f"{_SECONDS_TO_COME_BACK}s",
    }


def _pages(dashboard_port: int | None) -> dict[str, Any]:
    """What browsers get: nothing, or the dashboard; never a way on to other ports of this machine."""
    module = "distributed.http"
    asked = [f"{module}.scheduler.info", f"{module}.scheduler.json", f"{module}.health", f"{module}.statics"]
    return {
        "distributed.scheduler.http.routes": [] if dashboard_port is None else asked,
        "distributed.worker.http.routes": [],
    }


def _no_profile() -> dict[str, Any]:
    """Workers do not look at their own stacks: what they saw in a thousand seconds they would keep in memory."""
    return {"distributed.worker.profile.enabled": False}


@contextmanager
def _quiet() -> Iterator[None]:
    """What goes wrong is in the ledger; the logs of Dask and of the server below it would tear the table."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def visible_gpus() -> int:
    """How many GPUs (CUDA) this process may use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
