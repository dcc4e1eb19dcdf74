"""``dca cohort``: segment every CT in a folder, on this computer or on a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ..errors import UserError, format_install_command
from ..inference.options import SegmentOptions
from .console import cancellation_message, escape_unprintable, get_stderr_console, make_table, print_line, warn
from .field_options import Values, expand, fields_of
from .option_values import load_bundle
from .options import RUN_PANEL, BackendOption, BundleOption, shared_option

if TYPE_CHECKING:
    from distributed import Client
    from rich.table import Table

    from ..cohort.dask_workers import LocalWorkers
    from ..cohort.ledger import RunProgress

NAME = "cohort"
EXAMPLES = "Example: dca cohort archive/ -o cohort/ --workers 2"

_PACKAGES = ("pydicom", "highdicom", "distributed", "cryptography", "psutil", "jinja2")
_SELECTION_PANEL = "Selection of CTs"
_PRIVACY_PANEL = "Privacy"
_MAX_RUNNING_LINES = 6
_WITH_REVIEW = SegmentOptions(review=True)
_SECONDS_BETWEEN_LINES = 20.0


@expand
def run(
    source: Annotated[
        Path,
        typer.Argument(help="Folder with CTs: DICOM files of any number of patients, or image files.", metavar="INPUT"),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the cohort: a new one, or one to continue.")],
    *,
    bundle: BundleOption = None,
    selection: Annotated[Values, fields_of(SegmentOptions, "organs", "find_abdomen", "overlap", base=_WITH_REVIEW)],
    extension: Annotated[
        str, typer.Option("--format", help="File format of the labels: nrrd, nii.gz, nii or mha.")
    ] = "nrrd",
    resample: Annotated[
        bool,
        typer.Option(
            "--resample",
            help="Also segment CTs with tilted or unevenly spaced slices, after resampling them.",
            rich_help_panel=_SELECTION_PANEL,
        ),
    ] = False,
    findings: Annotated[
        Values,
        fields_of(
            SegmentOptions,
            "review",
            base=_WITH_REVIEW,
            help={"review": "Do not look for findings. This is faster, but the report shows less."},
        ),
    ],
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Worker processes on this computer. Default: one per GPU, or as many as fit.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=0.5,
            max=1e6,
            help="Memory limit of each worker in GiB. A worker that exceeds it is stopped.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: auto or cpu.", rich_help_panel=RUN_PANEL)] = "auto",
    backend: BackendOption = "auto",
    case_timeout: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=1e5,
            help="Time limit for each case in minutes. A case that takes longer fails, for instance because a library "
            "never finishes reading a damaged file; the others continue.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = 120.0,
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Use the workers of this Dask scheduler, such as tls://head-node:8786. Anyone who can connect to a "
            "tcp:// scheduler can run code as its owner.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
    dashboard_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Port of Dask's dashboard on this computer (0: any free port). All users of this computer can see it.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
    min_slices: Annotated[
        int,
        typer.Option(
            "--min-slices", min=2, help="Skip DICOM series with fewer slices.", rich_help_panel=_SELECTION_PANEL
        ),
    ] = 20,
    derived: Annotated[
        bool,
        typer.Option(
            "--derived",
            help="Also segment DICOM series that were computed from others.",
            rich_help_panel=_SELECTION_PANEL,
        ),
    ] = False,
    pseudonymize: Annotated[
        bool,
        typer.Option(
            "--pseudonymize",
            help="In all files, write pseudonyms instead of patient IDs, and no dates, descriptions or paths.",
            rich_help_panel=_PRIVACY_PANEL,
        ),
    ] = False,
    pseudonym_key: Annotated[
        Path | None,
        typer.Option(
            help="File with the secret key for pseudonyms. Default: OUT/pseudonym.key, which is created if missing.",
            rich_help_panel=_PRIVACY_PANEL,
        ),
    ] = None,
    shared: Annotated[bool, shared_option(_PRIVACY_PANEL)] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="Retry cases that failed in an earlier run.", rich_help_panel=_SELECTION_PANEL
        ),
    ] = False,
) -> None:
    """Segment every CT in a folder. An interrupted run can continue.

    DICOM files are sorted by series: axial CT series are segmented, and all others are skipped with a reason. Each
    case gets a folder in OUT/cases, with a DICOM SEG if it is DICOM. OUT/cohort.sqlite records the state of every
    case, and OUT/report.html shows the results. To continue, run the same command again. A failed case does not stop
    the others.
    """
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"Cohorts need packages that are not installed: {', '.join(missing)}.",
            f"Install them: {format_install_command(*missing)}",
        )
    from ..cohort.case import REPORT, VOLUMES, Settings
    from ..cohort.dask_workers import remote_client
    from ..cohort.run import Cohort, run_cohort
    from ..dicom.archive import Rules
    from ..inference.backends.selection import CHOICES
    from ..inference.device import choose_device
    from ..inference.pipeline import EXTENSIONS

    if scheduler and (workers or memory):
        raise UserError(
            "--workers and --memory only apply to workers on this computer.", "Omit them, or omit --scheduler."
        )
    if pseudonym_key is not None and not pseudonymize:
        raise UserError("--pseudonym-key needs --pseudonymize.", "Add --pseudonymize.")
    model = load_bundle(bundle)
    options = SegmentOptions(**selection, **findings)
    options.get_kept_labels(model.metadata.vocabulary)
    if scheduler and not scheduler.startswith(("tls://", "wss://", "tcp://127.0.0.1", "tcp://localhost")):
        warn(
            f"The connection to the Dask scheduler {scheduler} is not encrypted. Anyone who can connect to it can run "
            "code as its owner and read the cases. Use tls:// with certificates, or a network that only you can access."
        )
    extension = f".{extension.lstrip('.')}"
    if extension not in EXTENSIONS:
        raise UserError(f"--format '{extension[1:]}' is not a format for results.", "Use nrrd, nii.gz, nii or mha.")
    if backend not in CHOICES:
        raise UserError(f"There is no backend '{backend}'.", f"Choose one of: {', '.join(CHOICES)}.")
    if scheduler is None:
        choose_device(device)
    local = None if scheduler else _plan_workers(workers, memory, device)
    settings = Settings(
        out=str(out.absolute()),
        bundle=str(model.folder.resolve()),
        weights=model.weights.sha256,
        options=options,
        device=device,
        extension=extension,
        threads=local.threads if local else 0,
        backend=backend,
        resample=resample,
        shared=shared,
        case_minutes=case_timeout,
    )
    cohort = Cohort(
        source,
        settings,
        Rules(min_slices, derived, resample),
        model.metadata.vocabulary,
        model.metadata.name,
        retry_failed,
        pseudonym_key,
        pseudonymize,
    )

    def clients() -> AbstractContextManager[Client]:
        return remote_client(scheduler) if scheduler else _start_workers(local, dashboard_port)

    last_state: list[RunProgress] = []

    def what_was_kept() -> str:
        if not last_state:
            return f"The results of earlier runs are in {out}. To continue, run the same command again."
        state = last_state[-1]
        done = state.total - state.left
        return (
            f"{done} of {state.total} cases are done and saved in {out}. To continue with the other {state.left}, run "
            "the same command again."
        )

    with cancellation_message(what_was_kept), _live_display() as (show_search, show_state):

        def on_state(state: RunProgress) -> None:
            last_state[:] = [state]
            show_state(state)

        state = run_cohort(cohort, clients, show_search, on_state)
    for message in state.messages:
        warn(message)
    for limit in model.metadata.limits:
        warn(limit)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(state.counts.items()) if count)
    print_line(f"{counts or 'No CT was found'}.")
    print_line(f"The report is in {out / REPORT}, and all volumes are in {out / VOLUMES}.")


def _plan_workers(workers: int | None, memory: float | None, device: str) -> LocalWorkers:
    from ..cohort.dask_workers import LocalWorkers, count_visible_gpus

    gpus = 0 if device == "cpu" else count_visible_gpus()
    return LocalWorkers.plan(workers, gpus, None if memory is None else int(memory * 2**30))


def _start_workers(workers: LocalWorkers | None, dashboard_port: int | None) -> AbstractContextManager[Client]:
    from ..cohort.dask_workers import local_client

    assert workers is not None
    return local_client(workers, dashboard_port)


@contextmanager
def _live_display() -> Iterator[tuple[Callable[[int, str], None], Callable[[RunProgress], None]]]:
    """Yield functions that show the search and the state of the run: in a table, or without a terminal as occasional
    lines."""
    console = get_stderr_console()
    if not console.is_terminal:
        yield _make_progress_printers(console)
        return
    with Live(Text("Searching the input"), console=console, refresh_per_second=4, transient=True) as live:

        def show_search(files: int, text: str) -> None:
            live.update(Text(escape_unprintable(f"Searching the input: {files} files, {text}")))

        yield show_search, lambda state: live.update(_make_state_table(state))


def _make_progress_printers(console: Console) -> tuple[Callable[[int, str], None], Callable[[RunProgress], None]]:
    from time import monotonic

    last_printed = monotonic()

    def print_occasionally(text: str) -> None:
        nonlocal last_printed
        if monotonic() - last_printed >= _SECONDS_BETWEEN_LINES:
            last_printed = monotonic()
            console.print(escape_unprintable(text), soft_wrap=True, markup=False)

    return (
        lambda files, text: print_occasionally(f"Searching the input: {files} files"),
        lambda state: print_occasionally(
            f"{state.total - state.left} of {state.total} done"
            + (
                ""
                if state.per_hour is None
                else f", {_format_rate(state)}, {_format_duration(state.seconds_left)} left"
            )
        ),
    )


def _make_state_table(state: RunProgress) -> Group:
    rows: Table = make_table("", "OK", "Skipped", "Failed", "Left", "Running", "Rate", "Elapsed", "Time left")
    rows.add_row(
        *(Text(str(state.counts.get(status, 0)), style=color) for status, color in _COLORS),
        *(
            str(state.left),
            str(state.running),
            _format_rate(state),
            _format_duration(state.seconds),
            _format_duration(state.seconds_left),
        ),
    )
    lines = [
        Text(escape_unprintable(f"{status:8}{source}  {why}"), overflow="ellipsis", no_wrap=True)
        for source, status, why in state.recent
    ]
    running = [
        Text(escape_unprintable(f"running {source}"), overflow="ellipsis", no_wrap=True) for source in state.at_work
    ]
    if len(running) > _MAX_RUNNING_LINES:
        more = len(running) - _MAX_RUNNING_LINES
        running[_MAX_RUNNING_LINES:] = [Text(f"        and {more} more", style="dim")]
    if state.dashboard:
        lines.append(Text(f"Dask's dashboard: {state.dashboard}", style="dim"))
    return Group(rows, *running, *lines)


_COLORS = (("ok", "green"), ("skipped", "yellow"), ("failed", "red"))


def _format_rate(state: RunProgress) -> str:
    return "rate not known yet" if state.per_hour is None else f"{state.per_hour:.0f} cases per hour"


def _format_duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, whole_seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole_seconds:02}"
