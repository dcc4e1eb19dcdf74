"""Hands damaged files to every reader: each one reads them or refuses them in one line.

    python -m Testing.faults.fuzzing --files 10000 --record fuzz.jsonl
    python -m Testing.faults.fuzzing --files 500 --only "NIfTI" "DICOM folder" --seed 7

Each file is read by a process of its own, through the same code that turns errors into messages and exit codes for the
command line. The table counts what was read and what was refused, and what must not happen: a traceback, an error of
several lines or with control characters, a crash, more than 2 GB of memory, and more than 20 s of computing. A campaign
that was stopped goes on with the same ``--record``. ``--keep FOLDER`` keeps a copy of each file that failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[_name] = "1"

from .fuzzed_readers import Reader, all_readers
from .mutations import mutated

READ, REFUSED, TRACEBACK, SEVERAL_LINES, RAW, CRASH, HANG, MEMORY = ENDS = (
    *("read", "refused", "traceback", "several lines", "raw text", "crash", "hang", "memory"),
)
_BAD = (TRACEBACK, SEVERAL_LINES, RAW, CRASH, HANG, MEMORY)
_CPU_SECONDS, _WALL_SECONDS = 20, 120
_MOST_BYTES = 2 << 30
# The process may not take the memory of the whole machine before it is judged.
_LIMIT_BYTES = 4 << 30


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
        self._dice = random.Random(seed + 1_000_003 * self.total)
        self._readers = [each for each in all_readers() if not only or each.name in only]
        self._seeds: dict[str, Path] = {}
        for reader in self._readers:
            folder = place / "seeds" / str(len(self._seeds))
            folder.mkdir(parents=True)
            reader.write(folder)
            self._seeds[reader.name] = folder
            end, said = self._read(reader, self._copy(reader))[:2]
            if end != READ:
                raise RuntimeError(f"{reader.name} does not read what is whole: {end}: {said}")
            # Here once too, so that not each process imports anew what the reader needs.
            with (
                open(os.devnull, "w") as nowhere,  # noqa: PTH123
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
            ):
                reader.code_of(self._copy(reader))

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in self.counts.values())

    def run(self, files: int, deadline: float) -> None:
        """Damage files until ``files`` have been read in all, or until ``deadline`` (``time.monotonic``)."""
        while self.total < files and time.monotonic() < deadline:
            self._try(self._readers[self.total % len(self._readers)])

    def _try(self, reader: Reader) -> None:
        root = self._copy(reader)
        chosen = self._dice.choice(sorted(path for path in root.rglob(reader.damages) if path.is_file()))
        content = chosen.read_bytes()
        for _ in range(10):
            changed = mutated(chosen.name, content, self._dice)
            if changed != content:
                break
        chosen.write_bytes(changed)
        end, said, peak, seconds = self._read(reader, root)
        trial = Trial(reader.name, str(chosen.relative_to(root)), end, said[-2000:], round(peak, 1), round(seconds, 2))
        if end in _BAD and self._keep is not None:
            shutil.copytree(root, self._keep / f"{reader.name.replace(' ', '-')}-{self.total}", symlinks=True)
        self._count(trial)
        if self._record is not None:
            with self._record.open("a") as file:
                file.write(json.dumps(vars(trial)) + "\n")

    def _count(self, trial: Trial) -> None:
        self.counts.setdefault(trial.reader, Counter())[trial.end] += 1
        if trial.end in _BAD:
            told = f"{trial.end}: {trial.file}: {trial.said.strip()[-500:]}"
            self.failures.setdefault(trial.reader, []).append(told)

    def _copy(self, reader: Reader) -> Path:
        root = self._place / "work"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self._seeds[reader.name], root)
        return root

    def _read(self, reader: Reader, root: Path) -> tuple[str, str, float, float]:
        """How reading ended, what was printed, the memory that it took (MB), and the seconds of computing."""
        said = self._place / "said"
        before = _resident_bytes()
        process = os.fork()
        if process == 0:
            code = 70
            try:
                _in_child(said)
                code = reader.code_of(root)
            finally:
                sys.stderr.flush()
                os._exit(code)
        status, usage = _wait(process)
        peak = max(usage.ru_maxrss * 1024 - before, 0)
        seconds = usage.ru_utime + usage.ru_stime
        text = said.read_text(errors="surrogateescape")
        return _judge(status, text, peak), text, peak / 1e6, seconds

    def lines(self) -> list[str]:
        shape = "{:28}" + "  {:>13}" * (len(ENDS) + 1)
        lines = [shape.format("reader", "files", *ENDS)]
        for name, counts in sorted(self.counts.items()):
            lines.append(shape.format(name, sum(counts.values()), *(counts[end] for end in ENDS)))
            for told in list(dict.fromkeys(self.failures.get(name, [])))[:4]:
                lines += [f"    {line}" for line in told.splitlines()[-4:]]
        bad = sum(counts[end] for counts in self.counts.values() for end in _BAD)
        lines.append(f"{self.total} damaged files; {bad} ended otherwise than read or refused in one line.")
        return lines

    @property
    def failed(self) -> bool:
        return any(self.failures.values())


def _in_child(said: Path) -> None:
    descriptor = os.open(said, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    sys.stderr = open(2, "w", errors="replace", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    # What is logged is a note of one line, in Slicer's log or on the terminal.
    logging.basicConfig(format="Note: %(message)s", stream=sys.stderr, level=logging.WARNING, force=True)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + _LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _wait(process: int) -> tuple[int, resource.struct_rusage]:
    deadline = time.monotonic() + _WALL_SECONDS
    while True:
        ended, status, usage = os.wait4(process, os.WNOHANG)
        if ended:
            return status, usage
        if time.monotonic() > deadline:
            # Nothing that waits for a pipe computes.
            os.kill(process, signal.SIGXCPU)
            _, status, usage = os.wait4(process, 0)
            return status, usage
        time.sleep(0.001)


def _judge(status: int, said: str, peak: int) -> str:
    if os.WIFSIGNALED(status):
        return HANG if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else CRASH
    if peak > _MOST_BYTES or "not enough memory" in said.lower():
        return MEMORY
    if any(not char.isprintable() and char != "\n" for char in said):
        return RAW
    code = os.WEXITSTATUS(status)
    if code not in (0, 2):
        return TRACEBACK
    # Notes may come before the error.
    lines = [line for line in said.splitlines() if not line.startswith("Note: ")]
    if len(lines) != (code == 2) or not all(line.startswith("Error: ") for line in lines):
        return SEVERAL_LINES
    return READ if code == 0 else REFUSED


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


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
