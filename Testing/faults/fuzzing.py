"""Hands damaged files to every reader: each one reads them or refuses them in one line.

    python -m Testing.faults.fuzzing --files 10000 --record fuzz.jsonl
    python -m Testing.faults.fuzzing --files 500 --only "NIfTI" "DICOM folder" --seed 7

The files are read through the same code that turns errors into messages and exit codes for the command line, 25 by each
process, in turn by all readers. Memory, computing time and output are measured for each file. The table counts what was
read and what was refused, and what must not happen: a traceback, an error of several lines or with control characters,
a crash, more than 2 GB of memory, and more than 20 s of computing. A campaign that was stopped goes on with the same
``--record``. ``--keep FOLDER`` keeps a copy of each file that failed. The seed and the number of a file decide what is
damaged and how.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[_name] = "1"

from .fuzzed_readers import Reader, all_readers
from .mutations import mutated

READ, REFUSED, TRACEBACK, SEVERAL_LINES, RAW, CRASH, HANG, MEMORY = ENDS = (
    *("read", "refused", "traceback", "several lines", "raw text", "crash", "hang", "memory"),
)
_BAD = (TRACEBACK, SEVERAL_LINES, RAW, CRASH, HANG, MEMORY)
_CPU_SECONDS, _WALL_SECONDS = 20, 120
_MAX_BYTES = 2 << 30
# The process may not take the memory of the whole machine before it is judged.
_LIMIT_BYTES = 4 << 30
_FILES_PER_PROCESS = 25


@dataclass(frozen=True)
class Trial:
    """How one damaged file ended, and what was printed."""

    reader: str
    file: str
    end: str
    said: str
    peak_mb: float
    seconds: float


class Campaign:
    """``place`` is an empty folder to work in; ``record`` a file of JSON lines that holds what was done before."""

    def __init__(self, place: Path, seed: int, only: list[str], record: Path | None, keep: Path | None) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.failures: dict[str, list[str]] = {}
        self._record, self._keep, self._place = record, keep, place
        for line in record.read_text().splitlines() if record is not None and record.exists() else ():
            # The last line of a campaign that was killed may be cut off.
            with contextlib.suppress(ValueError, TypeError):
                self._count(Trial(**json.loads(line)))
        self._seed = seed
        self._readers = [each for each in all_readers() if not only or each.name in only]
        self._seeds: dict[str, Path] = {}
        for reader in self._readers:
            folder = place / "seeds" / str(len(self._seeds))
            folder.mkdir(parents=True)
            reader.write(folder)
            self._seeds[reader.name] = folder
            # In this process, so that not each one imports anew what the reader needs.
            with (
                io.StringIO() as said,
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(said),
            ):
                code, text = reader.code_of(self._copy(reader)), said.getvalue()
            if _judge(code, text, 0) != READ:
                raise RuntimeError(f"{reader.name} does not read what is whole: {text}")

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.counts.values())

    def run(self, files: int, deadline: float) -> None:
        """Damage files until ``files`` have been read in all, or until ``deadline`` (``time.monotonic``)."""
        while self.total < files and time.monotonic() < deadline:
            for trial in self._batch(self.total, min(self.total + _FILES_PER_PROCESS, files), deadline):
                self._count(trial)
                if self._record is not None:
                    with self._record.open("a") as file:
                        file.write(json.dumps(vars(trial)) + "\n")

    def _batch(self, first: int, stop: int, deadline: float) -> Iterator[Trial]:
        """The trials with the numbers from ``first`` to ``stop``, all in one process; fewer if it ends before."""
        reading, writing = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.close(reading)
                _begin_child(self._place / "said")
                for number in range(first, stop):
                    if time.monotonic() < deadline:
                        self._try(number, writing)
            finally:
                os._exit(0)
        os.close(writing)
        begun: dict[str, Any] = {}
        with os.fdopen(reading, "rb") as answers:
            while line := _next_line(answers, process):
                message = json.loads(line)
                if "end" in message:
                    begun = {}
                    yield Trial(**message)
                else:
                    begun = message
        status = os.waitpid(process, 0)[1]
        if begun:
            # The process ended while it read this file.
            said = (self._place / "said").read_text(errors="surrogateescape")
            is_hang = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)
            self._keep_files(begun["reader"])
            yield Trial(**begun, end=HANG if is_hang else CRASH, said=said[-2000:], peak_mb=0.0, seconds=0.0)

    def _try(self, number: int, answers: int) -> None:
        """Damage a file and read it; writes what is read, and how it ended, to the descriptor ``answers``."""
        reader = self._readers[number % len(self._readers)]
        dice = random.Random(f"{self._seed} {number}")
        root = self._copy(reader)
        chosen = dice.choice(sorted(path for path in root.rglob(reader.damages) if path.is_file()))
        content = chosen.read_bytes()
        for _ in range(10):
            changed = mutated(chosen.name, content, dice)
            if changed != content:
                break
        chosen.write_bytes(changed)
        begun = {"reader": reader.name, "file": str(chosen.relative_to(root))}
        os.write(answers, json.dumps(begun).encode() + b"\n")
        trial = _read(reader, root, self._place / "said", begun["file"])
        if trial.end in _BAD:
            self._keep_files(reader.name)
        os.write(answers, json.dumps(vars(trial)).encode() + b"\n")

    def _keep_files(self, name: str) -> None:
        if self._keep is not None:
            target = self._keep / f"{name.replace(' ', '-')}-{time.time_ns()}"
            shutil.copytree(self._place / "work", target, symlinks=True)

    def _count(self, trial: Trial) -> None:
        self.counts.setdefault(trial.reader, Counter())[trial.end] += 1
        if trial.end in _BAD:
            message = f"{trial.end}: {trial.file}: {trial.said.strip()[-500:]}"
            self.failures.setdefault(trial.reader, []).append(message)

    def _copy(self, reader: Reader) -> Path:
        root = self._place / "work"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self._seeds[reader.name], root)
        return root

    def lines(self) -> list[str]:
        shape = "{:28}" + "  {:>13}" * (len(ENDS) + 1)
        lines = [shape.format("reader", "files", *ENDS)]
        for name, counts in sorted(self.counts.items()):
            lines.append(shape.format(name, sum(counts.values()), *(counts[end] for end in ENDS)))
            for message in list(dict.fromkeys(self.failures.get(name, [])))[:4]:
                lines += [f"    {line}" for line in message.splitlines()[-4:]]
        bad = sum(counts[end] for counts in self.counts.values() for end in _BAD)
        lines.append(f"{self.total} damaged files; {bad} ended otherwise than read or refused in one line.")
        return lines

    @property
    def failed(self) -> bool:
        return any(self.failures.values())


def _begin_child(said: Path) -> None:
    descriptor = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_APPEND, 0o600)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    sys.stderr = open(2, "w", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _read(reader: Reader, root: Path, said: Path, file: str) -> Trial:
    """Read the damaged ``file`` in this process, which ``_begin_child`` prepared and which may not survive it."""
    os.truncate(said, 0)
    # What is logged is a note of one line, in Slicer's log or on the terminal.
    logging.basicConfig(format="Note: %(message)s", stream=sys.stderr, level=logging.WARNING, force=True)
    used, before = _cpu_seconds(), _begin_to_measure_memory()
    # The hard limits stay, so that the soft ones can be set again for the next file.
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + _LIMIT_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CPU, (int(used) + 1 + _CPU_SECONDS, resource.RLIM_INFINITY))
    try:
        code = reader.code_of(root)
    # Also what the command line lets pass, such as SystemExit.
    except BaseException:
        traceback.print_exc()
        code = 70
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    peak = max(_memory("VmHWM") - before, 0)
    text = said.read_text(errors="surrogateescape")
    seconds = _cpu_seconds() - used
    return Trial(reader.name, file, _judge(code, text, peak), text[-2000:], round(peak / 1e6, 1), round(seconds, 2))


def _next_line(answers: BinaryIO, process: int) -> bytes:
    """The next line of the process, which is ended if it says nothing for too long; empty at the end."""
    if not select.select([answers], [], [], _WALL_SECONDS)[0]:
        # Nothing that waits for a pipe computes.
        os.kill(process, signal.SIGKILL)
    return answers.readline()


def _judge(code: int, said: str, peak: int) -> str:
    if peak > _MAX_BYTES or "not enough memory" in said.lower():
        return MEMORY
    if any(not char.isprintable() and char != "\n" for char in said):
        return RAW
    if code not in (0, 2):
        return TRACEBACK
    # Notes may come before the error.
    lines = [line for line in said.splitlines() if not line.startswith("Note: ")]
    if len(lines) != (code == 2) or not all(line.startswith("Error: ") for line in lines):
        return SEVERAL_LINES
    return READ if code == 0 else REFUSED


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _begin_to_measure_memory() -> int:
    """Bytes in memory now; ``_memory("VmHWM")`` is the most from now on."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text(errors="replace").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m Testing.faults.fuzzing", description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--hours", type=float, default=24.0, help="at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=[], help="names of readers")
    parser.add_argument("--record", type=Path)
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dca-fuzz-") as place:
        campaign = Campaign(Path(place), given.seed, given.only, given.record, given.keep)
        with contextlib.suppress(KeyboardInterrupt):
            campaign.run(given.files, time.monotonic() + given.hours * 3600)
        print("\n".join(campaign.lines()))
    return 1 if campaign.failed else 0


if __name__ == "__main__":
    sys.exit(main())
