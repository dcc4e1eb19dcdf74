"""The folder of a training run: the names of its files, and its log, one JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import OutputError, get_reason
from ..imaging.writers import write_text

CHECKPOINT = "last.pt"
BEST = "best.pt"
LOG = "log.jsonl"
LOCK = "lock.sqlite"


def append_to_log(folder: Path, line: dict[str, Any]) -> dict[str, Any]:
    """Append ``line``, its numbers rounded, to the log of the run in ``folder``; returns the rounded line.

    Raises OutputError if the log cannot be written.
    """
    rounded = {key: round(value, 5) if isinstance(value, float) else value for key, value in line.items()}
    try:
        with (folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
    except OSError as error:
        raise OutputError(
            f"The log {folder / LOG} cannot be written ({get_reason(error)}).", "Free some disk space, then resume."
        ) from error
    return rounded


def trim_log(folder: Path, last_step: int) -> None:
    """Remove the log lines of steps after ``last_step``: after the process was killed, those steps are repeated."""
    path = folder / LOG
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _parse_step(line) <= last_step]
    if kept != lines:
        write_text("".join(line + "\n" for line in kept), path)


def _parse_step(line: str) -> float:
    """The step of a log line; infinity for an incomplete line, which remains if the process is killed while writing."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
