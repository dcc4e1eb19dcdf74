"""``dca cohort``: every CT of a folder, on this machine or a cluster."""

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

from ..errors import UserError
from .bundle import load
from .console import messages, say, says_when_cancelled, shown, table, warn
from .option_values import BackendOption, words

if TYPE_CHECKING:
    from distributed import Client
    from rich.table import Table

    from ..cohort.dask_workers import LocalWorkers
    from ..cohort.ledger import State

NAME = "cohort"
EXAMPLES = "Example: dca cohort archive/ -o cohort/ --workers 2"

_NEEDED = ("pydicom", "highdicom", "distributed", "cryptography", "psutil", "jinja2")
_WHERE = "Where it runs"
_WHAT = "What is taken"
_PRIVACY = "Patients' data"
_MOST_AT_WORK = 6
_QUIET_SECONDS = 20.0


def run(
    source: Annotated[
        Path, typer.Argument(help="A folder with CTs: DICOM of many patients mixed, or image files.", metavar="INPUT")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the cohort: a new one, or one to go on with.")],
    bundle: Annotated[
        str | None, typer.Option(help="Folder or name of the trained model. Else the default one (dca bundle info).")
    ] = None,
    organs: Annotated[str | None, typer.Option(help="Only these organs, as in liver,spleen. All if left out.")] = None,
    find_abdomen: Annotated[bool, typer.Option("--find-abdomen", help="In long scans: as in dca segment.")] = False,
    overlap: Annotated[
        float | None, typer.Option(help="Overlap of neighboring windows, 0 to below 1. Else the model's.")
    ] = None,
    extension: Annotated[str, typer.Option("--format", help="Format of labels: as in dca segment.")] = ".nrrd",
    resample: Annotated[
        bool,
        typer.Option(
            "--resample", help="Take CTs with tilted or unevenly spaced slices too, resampled.", rich_help_panel=_WHAT
        ),
    ] = False,
    no_review: Annotated[
        bool, typer.Option("--no-review", help="Do not look for findings: quicker, but a poorer report.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Worker processes on this machine. Else one for each GPU, or as many as fit.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(min=0.5, help="GiB each worker may take; one above it is ended.", rich_help_panel=_WHERE),
    ] = None,
    device: Annotated[str, typer.Option(help="auto or cpu.", rich_help_panel=_WHERE)] = "auto",
    runtime: BackendOption = "auto",
    scheduler: Annotated[
        str | None,
        typer.Option(
            help="Address of a running Dask scheduler, as in tls://head-node:8786: its workers do the work. Whoever "
            "reaches one of tcp:// can run code as its owner.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    dashboard_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Show Dask's dashboard on this port of this machine (0: any free one). All its users can see it.",
            rich_help_panel=_WHERE,
        ),
    ] = None,
    fewest_slices: Annotated[
        int, typer.Option("--min-slices", min=2, help="Shorter DICOM series are skipped.", rich_help_panel=_WHAT)
    ] = 20,
    derived: Annotated[
        bool, typer.Option("--derived", help="Take DICOM series computed from others, too.", rich_help_panel=_WHAT)
    ] = False,
    anonymous: Annotated[
        bool,
        typer.Option(
            "--anonymous",
            help="Pseudonyms in place of patient IDs, and no dates, descriptions or paths, in all that is written.",
            rich_help_panel=_PRIVACY,
        ),
    ] = False,
    pseudonym_key: Annotated[
        Path | None,
        typer.Option(
            help="File with the secret that pseudonyms are made with. Else OUT/pseudonym.key, made if there is none.",
            rich_help_panel=_PRIVACY,
        ),
    ] = None,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="Let other users of this machine read the results, as the umask says; else their owner alone can.",
            rich_help_panel=_PRIVACY,
        ),
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed in an earlier run.", rich_help_panel=_WHAT)
    ] = False,
) -> None:
    """Segment every CT of a folder; go on after an interruption.

    DICOM is sorted: axial CT series are taken, all else is skipped with its reason. Each case gets a folder in
    OUT/cases, with a DICOM SEG where it came as DICOM. OUT/cohort.sqlite accounts for every case, OUT/report.html
    shows them. The same command begun again goes on where it stopped. A case that fails never stops the others.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(
            f"Cohorts need packages that are not installed: {', '.join(missing)}.",
            'Install them: pip install "dca-segmentation[cohort]"',
        )
    from ..cohort.case import REPORT, VOLUMES, Settings
    from ..cohort.dask_workers import remote_client
    from ..cohort.run import Cohort, run_cohort
    from ..dicom.archive import Rules
    from ..inference.options import SegmentOptions

    if scheduler and (workers or memory):
        raise UserError("--workers and --memory are for workers of this machine.", "Leave them out with --scheduler.")
    if pseudonym_key is not None and not anonymous:
        raise UserError("--pseudonym-key is for pseudonyms.", "Add --anonymous.")
    model = load(bundle)
    options = SegmentOptions(
        find_abdomen=find_abdomen,
        overlap=overlap,
        organs=None if organs is None else words(organs),
        review=not no_review,
    )
    options.kept_labels(model.metadata.vocabulary)
    if scheduler and not scheduler.startswith(("tls://", "wss://", "tcp://127.0.0.1", "tcp://localhost")):
        warn(
            f"The Dask scheduler {scheduler} is not encrypted: whoever reaches it can run code as its owner and read "
            "the cases. Use tls:// with certificates, or a network that only you reach."
        )
    local = None if scheduler else _planned(workers, memory, device)
    settings = Settings(
        out=str(out.absolute()),
        bundle=str(model.folder.resolve()),
        weights=model.weights.sha256,
        options=options,
        device=device,
        extension=extension,
        threads=local.threads if local else 0,
        runtime=runtime,
        resample=resample,
        shared=shared,
    )
    cohort = Cohort(
        source,
        settings,
        Rules(fewest_slices, derived, resample),
        model.metadata.vocabulary,
        model.metadata.name,
        retry_failed,
        pseudonym_key,
        anonymous,
    )

    def clients() -> AbstractContextManager[Client]:
        return remote_client(scheduler) if scheduler else _local(local, dashboard_port)

    reached: list[State] = []

    def kept() -> str:
        again = "Run the same command again to go on"
        if not reached:
            return f"{again}: what earlier runs have finished is kept in {out}."
        state = reached[-1]
        done = state.total - state.left
        return f"{done} of {state.total} are done and kept in {out}. {again} with the other {state.left}."

    with says_when_cancelled(kept), _live() as (searching, tick):

        def follow(state: State) -> None:
            reached[:] = [state]
            tick(state)

        state = run_cohort(cohort, clients, searching, follow)
    for message in state.messages:
        warn(message)
    for limit in model.metadata.limits:
        warn(limit)
    counted = ", ".join(f"{count} {status}" for status, count in sorted(state.counts.items()) if count)
    say(f"{counted or 'Nothing was found'}.")
    say(f"The report is in {out / REPORT}, all volumes are in {out / VOLUMES}.")


def _planned(workers: int | None, memory: float | None, device: str) -> LocalWorkers:
    from ..cohort.dask_workers import LocalWorkers, visible_gpus

    gpus = 0 if device == "cpu" else visible_gpus()
    return LocalWorkers.planned(workers, gpus, None if memory is None else int(memory * 2**30))


def _local(workers: LocalWorkers | None, dashboard_port: int | None) -> AbstractContextManager[Client]:
    from ..cohort.dask_workers import local_client

    assert workers is not None
    return local_client(workers, dashboard_port)


@contextmanager
def _live() -> Iterator[tuple[Callable[[int, str], None], Callable[[State], None]]]:
    """Functions that show the search and the state of the run: a table in a terminal, else a line now and then."""
    console = messages()
    if not console.is_terminal:
        yield _sparing_lines(console)
        return
    with Live(Text("Looking through the input"), console=console, refresh_per_second=4, transient=True) as live:

        def searching(files: int, text: str) -> None:
            live.update(Text(shown(f"Looking through the input: {files} files, {text}")))

        yield searching, lambda state: live.update(_table(state))


def _sparing_lines(console: Console) -> tuple[Callable[[int, str], None], Callable[[State], None]]:
    from time import monotonic

    said = monotonic()

    def tell(text: str) -> None:
        nonlocal said
        if monotonic() - said >= _QUIET_SECONDS:
            said = monotonic()
            console.print(shown(text), soft_wrap=True, markup=False)

    return (
        lambda files, text: tell(f"Looking through the input: {files} files"),
        lambda state: tell(
            f"{state.total - state.left} of {state.total}  {_rate(state)}, {_duration(state.seconds_left)} left"
        ),
    )


def _table(state: State) -> Group:
    rows: Table = table("", "OK", "Skipped", "Failed", "Left", "At work", "Rate", "Elapsed", "Time left")
    rows.add_row(
        *(Text(str(state.counts.get(status, 0)), style=color) for status, color in _COLORS),
        *(str(state.left), str(state.running), _rate(state), _duration(state.seconds), _duration(state.seconds_left)),
    )
    lines = [
        Text(shown(f"{status:8}{source}  {why}"), overflow="ellipsis", no_wrap=True)
        for source, status, why in state.recent
    ]
    at_work = [Text(shown(f"at work {source}"), overflow="ellipsis", no_wrap=True) for source in state.at_work]
    if len(at_work) > _MOST_AT_WORK:
        more = len(at_work) - _MOST_AT_WORK
        at_work[_MOST_AT_WORK:] = [Text(f"        and {more} more", style="dim")]
    if state.dashboard:
        lines.append(Text(f"Dask's dashboard: {state.dashboard}", style="dim"))
    return Group(rows, *at_work, *lines)


_COLORS = (("ok", "green"), ("skipped", "yellow"), ("failed", "red"))


def _rate(state: State) -> str:
    return "rate not known yet" if state.per_hour is None else f"{state.per_hour:.0f} cases an hour"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
