"""Dask workers: processes started on this machine, or the workers of an existing Dask scheduler.

Anyone who can connect to a Dask scheduler or worker can run code there. Local ones therefore listen on the loopback
interface only, encrypt their traffic, and accept only clients with the certificate of this run, which exists only in
the memory of its processes. Other users of the machine do not have it. No web server runs unless the user asks for the
dashboard.
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

from ..errors import UserError, describe_root_cause, format_install_command
from ..inference.process_settings import get_passive_wait_settings

_LOOPBACK = "127.0.0.1"
_PROTOCOL = "tls://"
# The remainder is for the operating system and this program.
_SHARE_OF_MEMORY = 0.9
_CORES_PER_WORKER = 4
_BYTES_PER_WORKER = 6e9
_CONNECT_TIMEOUT = "30s"
# On a busy machine a Python process may take minutes to start.
_START_SECONDS = 300
# A killed worker that has not restarted after this time is replaced. Dask's default of 15 s is too short on machines
# that need as long to load PyTorch; Dask would then give up the worker without replacing it.
_RESTART_SECONDS = 60


@dataclass(frozen=True)
class LocalWorkers:
    """Number of worker processes on this machine, threads and memory (bytes) of each, and whether each gets a GPU."""

    count: int
    threads: int
    memory_bytes: int
    gpus: bool = False

    @classmethod
    def plan(cls, count: int | None, gpus: int, memory_bytes: int | None = None) -> LocalWorkers:
        """Plan ``count`` workers, or one for each of ``gpus``, or as many as the cores and the memory allow.

        The cores are divided among the workers, as is the memory unless ``memory_bytes`` sets it for each. Raises
        UserError if there are more workers than GPUs.
        """
        cores, memory = _count_cores(), psutil.virtual_memory().total * _SHARE_OF_MEMORY
        chosen = count or gpus or max(1, min(cores // _CORES_PER_WORKER, int(memory / _BYTES_PER_WORKER)))
        if gpus and chosen > gpus:
            available = f"{gpus} GPU{'s' if gpus > 1 else ''}"
            raise UserError(f"{chosen} workers are too many for {available}.", f"Use --workers {gpus} or fewer.")
        return cls(chosen, max(1, cores // chosen), memory_bytes or int(memory / chosen), bool(gpus))


class _NoWebServer:
    """Mixin for a Dask server that serves no web pages."""

    def start_http_server(self, routes: Any, *_: Any, **__: Any) -> None:
        """Create the server object that Dask stops at the end, without listening on any port."""
        self.http_application = RoutingApplication(routes)
        self.http_server = HTTPServer(self.http_application)


class _Scheduler(_NoWebServer, Scheduler):
    pass


class _Worker(_NoWebServer, Worker):
    pass


class _SchedulerWithDashboard(Scheduler):
    """Serves the dashboard to local pages only, so that a foreign web page cannot send a browser here."""

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Start Dask's web server, and reject requests with a foreign host or origin (status 403)."""
        super().start_http_server(*arguments, **options)
        application = self.http_application
        find_handler = application.find_handler
        own_hosts = {f"{name}:{self.http_server.port}" for name in (_LOOPBACK, "localhost")}

        def find_local_handler(request: HTTPServerRequest, **options: Any) -> Any:
            origin = request.headers.get("Origin")
            if request.host in own_hosts and (origin is None or origin.removeprefix("http://") in own_hosts):
                return find_handler(request, **options)
            return application.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

        application.find_handler = find_local_handler


@contextmanager
def local_client(workers: LocalWorkers, dashboard_port: int | None = None) -> Iterator[Client]:
    """Start private worker processes on this machine; they stop when this process ends, even if it is killed.

    With ``dashboard_port``, Dask's dashboard listens on that loopback port (0: any free port). A killed worker is
    restarted or replaced, see ``replace_lost_workers``. Raises UserError if the workers do not start.
    """
    settings = {
        "logging": {"distributed": "critical"},
        **_make_memory_settings(),
        **_make_allocator_settings(),
        **_make_restart_settings(),
        **_make_profiler_settings(),
        **_make_web_settings(dashboard_port),
    }
    with dask.config.set(settings), _silenced_logs():
        cluster = _start_local_cluster(workers, dashboard_port)
        try:
            with Client(cluster, timeout=_CONNECT_TIMEOUT) as client:
                yield client
        finally:
            cluster.close(timeout=10)


def replace_lost_workers(client: Client) -> None:
    """Replace the local workers that Dask has given up. Does nothing for a remote scheduler.

    Dask restarts a killed worker, but gives up if that fails or takes longer than ``_RESTART_SECONDS``.
    """
    cluster = client.cluster
    if isinstance(cluster, SpecCluster):
        # Scaling to the planned number starts the missing ones.
        cluster.scale(len(cluster.worker_spec))


def _start_local_cluster(workers: LocalWorkers, dashboard_port: int | None) -> SpecCluster:
    try:
        security = Security.temporary()
    except ImportError:
        raise UserError(
            "Cohorts need a package that is not installed: cryptography.",
            f"Install it: {format_install_command('cryptography')}",
        ) from None
    options: dict[str, Any] = {"host": _LOOPBACK, "port": 0, "protocol": _PROTOCOL, "security": security}
    scheduler = {"cls": _Scheduler, "options": {**options, "dashboard": False}}
    if dashboard_port is not None:
        address = f"{_LOOPBACK}:{dashboard_port}"
        scheduler = {"cls": _SchedulerWithDashboard, "options": {**options, "dashboard_address": address}}
    try:
        return SpecCluster(
            workers={index: _make_worker_spec(workers, index, security) for index in range(workers.count)},
            scheduler=scheduler,
            security=security,
            silence_logs=logging.CRITICAL,
        )
    # Dask raises many kinds of errors if a worker starts too slowly or dies while it starts.
    except Exception as error:
        raise UserError(
            f"The worker processes did not start within {_START_SECONDS} s, "
            f"or stopped at once ({describe_root_cause(error)}).",
            "Wait until the machine is less busy, or use fewer --workers.",
        ) from error


@contextmanager
def remote_client(address: str) -> Iterator[Client]:
    """Connect to the Dask scheduler at ``address``.

    Raises UserError if it does not answer, has no workers, or a worker has another version of this program.
    """
    with _silenced_logs():
        try:
            client = Client(address, timeout=_CONNECT_TIMEOUT)
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(
                f"The Dask scheduler {address} does not answer ({type(error).__name__}).",
                "Check that it is running, and give its address, such as tcp://head-node:8786.",
            ) from None
        with client:
            _require_same_version(client)
            yield client


def _make_worker_spec(workers: LocalWorkers, index: int, security: Security | None = None) -> dict[str, Any]:
    threads = str(workers.threads)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {**dict.fromkeys(names, threads), "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": threads}
    environment |= get_passive_wait_settings()
    if workers.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = _get_visible_gpu(index)
    return {
        "cls": Nanny,
        "options": {
            "host": _LOOPBACK,
            "protocol": _PROTOCOL,
            "security": security,
            "worker_class": _Worker,
            # One thread runs the network while the other reads or writes a case.
            "nthreads": 2,
            "memory_limit": workers.memory_bytes,
            "env": environment,
            "death_timeout": _START_SECONDS,
            "silence_logs": logging.CRITICAL,
        },
    }


def _get_visible_gpu(index: int) -> str:
    """Number or UUID of the ``index``-th GPU that this process may use."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[index] if visible else str(index)


def _require_same_version(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=60)
    except TimeoutError:
        raise UserError("The Dask scheduler has no workers.", "Start some: dask worker ADDRESS --nthreads 2.") from None
    required = installed_version()
    versions = client.run(installed_version, on_error="return")
    outdated = [address for address, installed in versions.items() if installed != required]
    if outdated:
        raise UserError(
            f"{_count_workers(outdated)} version {required} of this program (first: {outdated[0]}).",
            "Install this version, with its extra cohort, on all workers.",
        )


def require_shared_folders(client: Client, folders: list[str]) -> None:
    """Check that all workers see ``folders``. Raises UserError if one does not."""
    for folder in folders:
        missing = [address for address, exists in client.run(_exists, folder).items() if not exists]
        if missing:
            raise UserError(
                f"{_count_workers(missing)} access to {folder} (first: {missing[0]}).",
                "Keep input, output and model on storage that all machines mount under the same path.",
            )


def _count_workers(addresses: list[str]) -> str:
    return "1 worker does not have" if len(addresses) == 1 else f"{len(addresses)} workers do not have"


def installed_version() -> str:
    """The version of this program in this process, or "not installed"."""
    try:
        return version("dca-segmentation")
    except PackageNotFoundError:
        return "not installed"


def _exists(folder: str) -> bool:
    return Path(folder).exists()


def _make_memory_settings() -> dict[str, Any]:
    """Workers hold no results to spill; a worker above its memory limit is killed and restarted."""
    memory = "distributed.worker.memory"
    return {f"{memory}.target": False, f"{memory}.spill": False, f"{memory}.pause": False, f"{memory}.terminate": 0.95}


def _make_allocator_settings() -> dict[str, Any]:
    """One arena for all threads: glibc keeps freed memory of its main arena only (``inference.process_settings``)."""
    return {"distributed.nanny.pre-spawn-environ.MALLOC_ARENA_MAX": 1}


def _make_restart_settings() -> dict[str, Any]:
    """Dask retries a case once after its worker was killed; then ``dispatch`` runs it alone."""
    return {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.deploy.lost-worker-timeout": f"{_RESTART_SECONDS}s",
    }


def _make_web_settings(dashboard_port: int | None) -> dict[str, Any]:
    """Serve nothing or the dashboard, but never Dask's proxy to other ports of this machine."""
    module = "distributed.http"
    dashboard = [f"{module}.scheduler.info", f"{module}.scheduler.json", f"{module}.health", f"{module}.statics"]
    return {
        "distributed.scheduler.http.routes": [] if dashboard_port is None else dashboard,
        "distributed.worker.http.routes": [],
    }


def _make_profiler_settings() -> dict[str, Any]:
    """No profiler in the workers: it would keep 1000 s of stack samples in memory."""
    return {"distributed.worker.profile.enabled": False}


@contextmanager
def _silenced_logs() -> Iterator[None]:
    """Silence Dask and Tornado: errors are in the ledger, and log lines would garble the live table."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def count_visible_gpus() -> int:
    """The number of CUDA GPUs that this process may use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
