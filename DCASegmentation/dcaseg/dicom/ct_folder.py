"""The one CT of a folder in which anything may lie, and what its slices are: for commands that segment a single CT."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import ImageError
from .archive import (
    Header,
    Rules,
    Series,
    files_below,
    group,
    is_dicom,
    ordered,
    read_header,
    select,
    volumes,
    without_copies,
)

# A folder that was named may mean a short or a computed series, too.
_FEWEST_SLICES = 2
_TELL_EVERY = 100
_MOST_LISTED = 30


@dataclass(frozen=True)
class OneCT:
    """The slices of a CT in their order; ``notes`` tell what else there was."""

    name: str
    files: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Candidate:
    """A volume to choose; none of its ``images`` is to be used, for the ``reason``, unless it is asked for."""

    series: Series
    images: tuple[Header, ...]
    acquisition: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def description(self) -> str:
        series, count = self.series, sum(image.frames for image in self.images)
        modality = next((image.modality for image in self.images if image.modality), "unknown modality")
        told = [modality, series.description or "no description", f"{count} slice{'s' if count != 1 else ''}"]
        if series.patient:
            told.append(f"patient {series.patient}")
        if self.acquisition:
            told.append(f"acquisition {self.acquisition}")
        told.append(f"UID {series.uid}" if series.uid else f"without UID, in {Path(self.images[0].file).parent.name}")
        return ", ".join([*told, *([f"not taken by itself: {self.reason}"] if self.reason else [])])


def find_one_ct(
    folder: Path,
    choice: str | None,
    leave_out: Path,
    progress: Callable[[int], None] | None = None,
    resample: bool = False,
) -> OneCT:
    """The CT in ``folder`` and the folders below it, ``leave_out`` apart.

    ``choice`` is a number of the list that the error shows, or a SeriesInstanceUID: that series is taken whatever it
    is. Without it there must be one axial CT series; localizers, dual-energy maps, MR and the like beside it are
    passed over. ``progress(files)`` is called now and then. ``resample`` allows slices that are tilted or unevenly
    spaced.

    Raises ImageError where there is no DICOM image, no CT or more than one to choose from, where the slices do not
    fill a volume, and for a damaged or unreadable DICOM file beside them.
    """
    headers, damaged = _headers(folder, leave_out, progress)
    if not headers:
        raise _nothing(folder, damaged)
    rules = Rules(_FEWEST_SLICES, derived=True, resample=resample)
    candidates = [candidate for series in group(headers) for candidate in _candidates(series, rules)]
    chosen = _chosen(candidates, choice, folder.name)
    name = chosen.series.description or folder.name
    folders = {Path(image.file).parent for image in chosen.images}
    for file, why in damaged:
        if file.parent in folders:
            # Left out, it would shorten the volume unnoticed.
            raise ImageError(
                f"{file.name} in {file.parent.name} cannot be used: {why}.",
                "Copy or export the series again, or put the file elsewhere if it is none of its slices.",
            )
    try:
        # An acquisition by itself is in order already; a series that was asked for, whatever it is, need not be.
        kept, copies = without_copies(chosen.images)
        volume = ordered(kept, name, resample)
    except (OSError, ValueError) as error:
        raise ImageError(f"The DICOM series {name} cannot be used: {error}.", "Export it again.") from None
    passed = [each for each in candidates if each is not chosen]
    left_out = [f"{copies} cop{'ies' if copies > 1 else 'y'} of its images left out."] if copies else []
    notes = [*chosen.notes, *left_out, *volume.notes, *_passed_over(passed)]
    return OneCT(name, tuple(Path(image.file) for image in volume.images), tuple(dict.fromkeys(notes)))


def _headers(
    folder: Path, leave_out: Path, progress: Callable[[int], None] | None
) -> tuple[list[Header], list[tuple[Path, str]]]:
    found: list[Header] = []
    damaged: list[tuple[Path, str]] = []

    def note(path: Path, error: OSError) -> None:
        damaged.append((path, f"it cannot be read ({error.strerror or error})"))

    for count, file in enumerate(files_below(folder.absolute(), leave_out.absolute(), note), start=1):
        if progress and count % _TELL_EVERY == 0:
            progress(count)
        try:
            header = read_header(file) if is_dicom(file) else None
        except OSError as error:
            note(file, error)
        except ValueError as error:
            damaged.append((file, f"it is incomplete or damaged ({error})"))
        else:
            if header is not None:
                found.append(header)
    return found, damaged


def _candidates(series: Series, rules: Rules) -> list[_Candidate]:
    selection = select(series, rules)
    if selection.reason:
        return [_Candidate(series, series.images, reason=selection.reason)]
    try:
        images = without_copies(selection.images)[0]
        stacks = volumes(images, series.description, rules.fewest_slices, rules.resample)
    except (ImageError, OSError, ValueError):
        # What is wrong is told when it is chosen.
        return [_Candidate(series, selection.images, notes=selection.notes)]
    return [
        _Candidate(series, stack.images, number, "", (*selection.notes, *stack.notes))
        for number, stack in stacks.items()
    ]


def _chosen(candidates: list[_Candidate], choice: str | None, name: str) -> _Candidate:
    if choice is not None:
        by_uid = [each for each in candidates if each.series.uid == choice]
        if len(by_uid) == 1:
            return by_uid[0]
        if not by_uid and choice.isdecimal() and 1 <= int(choice) <= len(candidates):
            return candidates[int(choice) - 1]
        several = f"{choice} is the UID of {len(by_uid)} CTs" if by_uid else f"There is no series {choice}"
        raise ImageError(f"{several}: {_listed(candidates, name)}", "Choose one of these by its number.")
    usable = [each for each in candidates if not each.reason]
    if len(usable) == 1:
        return usable[0]
    if len(candidates) == 1:
        return candidates[0]
    raise ImageError(_listed(candidates, name), "Choose one with --series and its number or UID.")


def _listed(candidates: list[_Candidate], name: str) -> str:
    shown = [f"[{number}] {each.description}" for number, each in enumerate(candidates[:_MOST_LISTED], start=1)]
    if len(candidates) > _MOST_LISTED:
        shown.append(f"and {len(candidates) - _MOST_LISTED} more")
    return f"{name} holds {len(candidates)} series: {'; '.join(shown)}."


def _passed_over(candidates: list[_Candidate]) -> list[str]:
    if not candidates:
        return []
    reasons = sorted({each.reason or "another CT" for each in candidates})
    return [f"{len(candidates)} other series passed over: {'; '.join(reasons)}."]


def _nothing(folder: Path, damaged: list[tuple[Path, str]]) -> ImageError:
    if damaged:
        file, why = damaged[0]
        return ImageError(
            f"{folder} holds no DICOM image that can be used: {file.name}: {why}.", "Copy or export the series again."
        )
    return ImageError(f"{folder} holds no DICOM images.", "Give a folder with the DICOM files of a CT.")
