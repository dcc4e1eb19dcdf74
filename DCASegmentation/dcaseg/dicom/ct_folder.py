"""Finds the one CT in a folder with arbitrary contents, and its slices, for commands that segment a single CT."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import ImageError, get_reason
from ..imaging.dicom_series import note_on_lost_slices
from .archive import (
    NOT_AXIAL,
    Header,
    Rules,
    Series,
    Volume,
    group,
    is_dicom,
    order_slices,
    read_header,
    remove_duplicates,
    select,
    split_into_volumes,
    walk_files,
)

# A folder named explicitly may contain a short or a computed series.
_MIN_SLICES = 2
_PROGRESS_INTERVAL = 100  # files
_MAX_LISTED = 30


@dataclass(frozen=True)
class CTSeries:
    """The files of a CT in the order of their ``slices`` (a number); ``notes`` say what was left out."""

    name: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]
    slices: int


@dataclass(frozen=True)
class _Candidate:
    """A volume that can be selected. With a ``reason`` against it, it is used only if it is selected explicitly."""

    series: Series
    images: tuple[Header, ...]
    acquisition: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        """The volume in words, for the list of volumes to choose from."""
        series, count = self.series, sum(image.frames for image in self.images)
        modality = next((image.modality for image in self.images if image.modality), "unknown modality")
        parts = [modality, series.description or "no description", f"{count} slice{'s' if count != 1 else ''}"]
        if series.patient:
            parts.append(f"patient {series.patient}")
        if self.acquisition:
            parts.append(f"acquisition {self.acquisition}")
        parts.append(f"UID {series.uid}" if series.uid else f"without UID, in {Path(self.images[0].file).parent.name}")
        return ", ".join([*parts, *([f"not selected automatically: {self.reason}"] if self.reason else [])])


def find_one_ct(
    folder: Path,
    choice: str | None,
    leave_out: Path,
    progress: Callable[[int], None] | None = None,
    resample: bool = False,
) -> CTSeries:
    """Find the CT in ``folder`` and its subfolders, except ``leave_out``.

    ``choice`` is a number from the list in the error message, or a SeriesInstanceUID; that series is used whatever it
    is. Without it, there must be exactly one axial CT series; localizers, dual-energy maps, MR and other series are
    skipped. ``progress(files)`` is called from time to time with the number of files read. ``resample`` allows tilted
    or unevenly spaced slices.

    Raises ImageError if there is no DICOM image, no CT, or more than one to choose from, if the slices do not form a
    volume, and if a DICOM file in their folders is damaged or unreadable.
    """
    candidates, damaged = _search(folder, leave_out, progress, resample)
    chosen = _choose_candidate(candidates, choice, folder.name)
    volume, copies = _build_volume(chosen, damaged, folder, resample)
    skipped = [candidate for candidate in candidates if candidate is not chosen]
    duplicates = "1 duplicate image was" if copies == 1 else f"{copies} duplicate images were"
    left_out = [f"{duplicates} left out."] if copies else []
    lost = note_on_lost_slices(volume.images)
    notes = [
        *_make_only_series_note(chosen, choice),
        *chosen.notes,
        *left_out,
        *lost,
        *volume.notes,
        *_make_skipped_note(skipped),
    ]
    return _make_one_ct(chosen, volume, folder, notes)


def iter_cts(folder: Path, leave_out: Path, resample: bool = False) -> Iterator[CTSeries]:
    """Yield every volume that ``find_one_ct`` could return, those that it selects without a choice first.

    Series that do not form a volume are left out. Raises ImageError if there is no DICOM image, or no volume.
    """
    candidates, damaged = _search(folder, leave_out, None, resample)
    problems: list[ImageError] = []
    for candidate in sorted(candidates, key=lambda each: bool(each.reason)):
        try:
            volume, _ = _build_volume(candidate, damaged, folder, resample)
        except ImageError as error:
            problems.append(error)
        else:
            yield _make_one_ct(candidate, volume, folder, volume.notes)
    if len(problems) == len(candidates):
        raise problems[0]


def _search(
    folder: Path, leave_out: Path, progress: Callable[[int], None] | None, resample: bool
) -> tuple[list[_Candidate], list[tuple[Path, str]]]:
    """The volumes in the folder tree, and the files that cannot be used, each with the problem."""
    headers, damaged = _read_headers(folder, leave_out, progress)
    if not headers:
        raise _make_no_dicom_error(folder, damaged)
    rules = Rules(_MIN_SLICES, derived=True, resample=resample)
    return [candidate for series in group(headers) for candidate in _find_candidates(series, rules)], damaged


def _build_volume(
    chosen: _Candidate, damaged: list[tuple[Path, str]], folder: Path, resample: bool
) -> tuple[Volume, int]:
    """The slices of ``chosen`` in order, and the number of duplicates that were left out."""
    name = chosen.series.description or folder.name
    folders = {Path(image.file).parent for image in chosen.images}
    for file, problem in damaged:
        if file.parent in folders:
            # Skipping the file would silently shorten the volume.
            raise ImageError(
                f"{file.name} in {file.parent.name} cannot be used: {problem}.",
                "Copy or export the series again, or move the file elsewhere if it does not belong to the series.",
            )
    try:
        # An acquisition is ordered already, but a series that was selected explicitly may not be.
        kept, copies = remove_duplicates(chosen.images)
        return order_slices(kept, name, resample), copies
    except (OSError, ValueError) as error:
        raise ImageError(f"The DICOM series {name} cannot be used: {get_reason(error)}.", "Export it again.") from None


def _make_one_ct(chosen: _Candidate, volume: Volume, folder: Path, notes: Iterable[str]) -> CTSeries:
    name = chosen.series.description or folder.name
    files = tuple(Path(image.file) for image in volume.images)
    return CTSeries(name, files, tuple(dict.fromkeys(notes)), volume.slices)


def _read_headers(
    folder: Path, leave_out: Path, progress: Callable[[int], None] | None
) -> tuple[list[Header], list[tuple[Path, str]]]:
    """The DICOM headers in the folder tree, and the files that cannot be used, each with the problem."""
    headers: list[Header] = []
    damaged: list[tuple[Path, str]] = []

    def add_unreadable(path: Path, error: OSError) -> None:
        damaged.append((path, f"it cannot be read ({get_reason(error)})"))

    for count, file in enumerate(walk_files(folder.absolute(), leave_out.absolute(), add_unreadable), start=1):
        if progress and count % _PROGRESS_INTERVAL == 0:
            progress(count)
        try:
            header = read_header(file) if is_dicom(file) else None
        except OSError as error:
            add_unreadable(file, error)
        except ValueError as error:
            damaged.append((file, f"it is incomplete or damaged ({error})"))
        else:
            if header is not None:
                headers.append(header)
    return headers, damaged


def _find_candidates(series: Series, rules: Rules) -> list[_Candidate]:
    selection = select(series, rules)
    if selection.reason:
        return [_Candidate(series, series.images, reason=selection.reason)]
    try:
        images = remove_duplicates(selection.images)[0]
        stacks = split_into_volumes(images, series.description, rules.min_slices, rules.resample)
    except (ImageError, OSError, ValueError):
        # The problem is reported if this candidate is chosen.
        return [_Candidate(series, selection.images, notes=selection.notes)]
    return [
        _Candidate(series, stack.images, number, "", (*selection.notes, *stack.notes))
        for number, stack in stacks.items()
    ]


def _choose_candidate(candidates: list[_Candidate], choice: str | None, name: str) -> _Candidate:
    if choice is not None:
        by_uid = [candidate for candidate in candidates if candidate.series.uid == choice]
        if len(by_uid) == 1:
            return by_uid[0]
        if not by_uid and choice.isdecimal() and 1 <= int(choice) <= len(candidates):
            return candidates[int(choice) - 1]
        problem = f"{choice} is the UID of {len(by_uid)} CTs" if by_uid else f"There is no series {choice}"
        raise ImageError(f"{problem}: {_format_candidates(candidates, name)}", "Select one of these by its number.")
    usable = [candidate for candidate in candidates if not candidate.reason]
    if len(usable) == 1:
        return usable[0]
    if len(candidates) == 1:
        return candidates[0]
    raise ImageError(_format_candidates(candidates, name), "Select one with --series and its number or UID.")


def _make_only_series_note(chosen: _Candidate, choice: str | None) -> list[str]:
    """A note on a series that is used only because it is the only one."""
    if choice is not None or not chosen.reason or chosen.reason == NOT_AXIAL:
        return []
    return [f"The only series is used, although it may not be a usual CT: {chosen.reason}."]


def _format_candidates(candidates: list[_Candidate], name: str) -> str:
    shown = [f"[{number}] {entry.description}" for number, entry in enumerate(candidates[:_MAX_LISTED], start=1)]
    if len(candidates) > _MAX_LISTED:
        shown.append(f"and {len(candidates) - _MAX_LISTED} more")
    return f"{name} contains {len(candidates)} series: {'; '.join(shown)}."


def _make_skipped_note(candidates: list[_Candidate]) -> list[str]:
    if not candidates:
        return []
    reasons = sorted({candidate.reason or "another CT" for candidate in candidates})
    verb = "was" if len(candidates) == 1 else "were"
    return [f"{len(candidates)} other series {verb} skipped: {'; '.join(reasons)}."]


def _make_no_dicom_error(folder: Path, damaged: list[tuple[Path, str]]) -> ImageError:
    if damaged:
        file, problem = damaged[0]
        return ImageError(
            f"{folder} contains no usable DICOM image: {file.name}: {problem}.", "Copy or export the series again."
        )
    return ImageError(f"{folder} contains no DICOM images.", "Choose a folder with the DICOM files of a CT.")
