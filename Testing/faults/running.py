"""Injects faults into workloads, one process each, and judges what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dcaseg import temp_paths as partials
from dcaseg.errors import UserError
from dcaseg.imaging import writers as writing

from .injection import (
    BROKEN,
    DENIED,
    ERRORS,
    FULL,
    INTERRUPT,
    KILL,
    READ_ONLY,
    TERMINATE,
    Injector,
    error_of,
    interrupt_after,
    kill,
    limit,
    signal_of,
)
from .workloads import ABSENT, NEW, Workload, all_workloads, fresh, leftovers

DONE, REFUSED, CANCELLED, KILLED, TRACEBACK, HUNG = "done", "refused", "cancelled", "killed", "traceback", "hung"
_CODES = {0: DONE, 2: REFUSED, 130: CANCELLED, 1: TRACEBACK}
_PATIENCE_SECONDS = 120.0
_MOUNT_KINDS = ("full disk", "read-only disk", "vanished disk")


@dataclass
class Row:
    """What became of one kind of fault in one workload."""

    injected: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    left: int = 0
    examples: list[str] = field(default_factory=list)

    def complain(self, what: str) -> None:
        if len(self.examples) < 3:
            self.examples.append(what)

    def add(self, other: Row) -> None:
        self.injected += other.injected
        self.ended.update(other.ended)
        self.lost += other.lost
        self.left += other.left
        for example in other.examples:
            self.complain(example)


class Table:
    """Rows by workload and kind of fault.

    With ``record``, a file of JSON lines, each fault is also appended there, and what the file holds already is part
    of the table: a campaign that was stopped goes on.
    """

    def __init__(self, record: Path | None = None) -> None:
        self.rows: dict[tuple[str, str], Row] = {}
        self._record = record
        for line in record.read_text().splitlines() if record is not None and record.exists() else ():
            # The last line of a campaign that was killed may be cut off.
            with contextlib.suppress(ValueError):
                content = json.loads(line)
                names = content.pop("workload"), content.pop("fault")
                self.row(*names).add(Row(**{**content, "ended": Counter(content["ended"])}))

    def add(self, workload: str, fault: str, found: Row) -> None:
        self.row(workload, fault).add(found)
        if self._record is not None:
            line = json.dumps({"workload": workload, "fault": fault, **vars(found)})
            with self._record.open("a") as file:
                file.write(f"{line}\n")

    def row(self, workload: str, fault: str) -> Row:
        return self.rows.setdefault((workload, fault), Row())

    @property
    def injected(self) -> int:
        return sum(row.injected for row in self.rows.values())

    @property
    def failures(self) -> int:
        """Results lost or wrong, leftovers, tracebacks and hangs."""
        return sum(row.lost + row.left + row.ended[TRACEBACK] + row.ended[HUNG] for row in self.rows.values())

    def lines(self) -> list[str]:
        head = ("work", "fault", "injected", KILLED, REFUSED, CANCELLED, DONE, TRACEBACK, HUNG, "lost", "left over")
        shape = "{:10}  {:24}" + "  {:>9}" * (len(head) - 2)
        lines = [shape.format(*head)]
        for (workload, fault), row in sorted(self.rows.items()):
            ends = (row.ended[end] for end in (KILLED, REFUSED, CANCELLED, DONE, TRACEBACK, HUNG))
            lines.append(shape.format(workload, fault, row.injected, *ends, row.lost, row.left))
            lines += [f"    {line}" for example in row.examples for line in example.splitlines()[-12:]]
        rows = self.rows.values()
        lost, left = sum(row.lost for row in rows), sum(row.left for row in rows)
        traces, hung = (sum(row.ended[end] for row in rows) for end in (TRACEBACK, HUNG))
        lines.append(
            f"{self.injected} faults injected; {lost} results lost or wrong, {left} with leftovers after the next run, "
            f"{traces} tracebacks, {hung} hangs."
        )
        return lines


@dataclass(frozen=True)
class Fault:
    """``begin(root)`` is called in the process that works, before it does, and gives the injector if there is one.

    ``around(root)`` is a context of the process that watches, such as a mounted disk. With ``exchange`` False the
    system cannot exchange folders, as on a network file system.
    """

    name: str
    begin: Callable[[Path], Injector | None]
    around: Callable[[Path], contextlib.AbstractContextManager[object]] = lambda root: contextlib.nullcontext()
    exchange: bool = True
    at_once: int = 1


class Harness:
    """``place`` is an empty folder to work in. ``seed`` chooses moments and kinds."""

    def __init__(self, place: Path, seed: int, only: Iterable[str] = (), record: Path | None = None) -> None:
        self.table = Table(record)
        # A campaign that goes on draws other faults than those that it has behind it.
        self._dice = random.Random(seed + 1000 * self.table.injected)
        self._place = place
        chosen = set(only)
        self._workloads = [each for each in all_workloads() if not chosen or each.name in chosen]
        self._templates: dict[str, Path] = {}
        self._counts: dict[str, int] = {}
        self._can_mount = _can_mount(place)

    def prepare(self) -> None:
        """Make what each workload begins with, and count the operations that faults can be injected into."""
        for workload in self._workloads:
            template = self._place / "templates" / workload.name
            template.mkdir(parents=True)
            self._in_process(partial(workload.prepare, template))
            self._templates[workload.name] = template
            root = self._fresh(workload)
            reader, writer = os.pipe()

            def count(root: Path = root, writer: int = writer, workload: Workload = workload) -> None:
                injector = Injector(root)
                injector.install()
                workload.work(root)
                os.write(writer, pickle.dumps(injector.count))

            end = self._in_process(count)
            os.close(writer)
            with os.fdopen(reader, "rb") as answers:
                content = answers.read()
            if end != DONE or workload.state(root) != NEW:
                raise RuntimeError(f"{workload.name} does not work without a fault: {end}, {self._said}")
            self._counts[workload.name] = pickle.loads(content)

    def sweep(self, deadline: float) -> None:
        """Each kind of fault at each operation in turn, as far as the time (``time.monotonic``) reaches."""
        plans = [(workload, fault) for workload in self._workloads for fault in self._faults(workload)]
        self._dice.shuffle(plans)
        # Of each kind in each workload one comes first.
        firsts = {(workload.name, fault.name): (workload, fault) for workload, fault in plans}
        chosen = {id(fault) for _, fault in firsts.values()}
        for workload, fault in [*firsts.values(), *(plan for plan in plans if id(plan[1]) not in chosen)]:
            if time.monotonic() > deadline:
                return
            self.inject(workload, fault)

    def random_faults(self, deadline: float) -> None:
        """Faults drawn by chance until ``deadline``."""
        while time.monotonic() < deadline:
            workload = self._dice.choice(self._workloads)
            self.inject(workload, self._dice.choice(list(self._faults(workload))))

    def inject(self, workload: Workload, fault: Fault) -> None:
        """One fault, then the next run without one; what was lost or left goes into the table."""
        row = Row(injected=1)
        root = self._fresh(workload)
        with fault.around(root):
            works = [self._start(lambda: self._work(workload, root, fault)) for _ in range(fault.at_once)]
            for process, said in works:
                end = self._end_of(process)
                row.ended[end] += 1
                if end in (TRACEBACK, HUNG):
                    row.complain(f"{end}: {_text(said)}")
        self._judge(workload, fault, root, row)
        self.table.add(workload.name, fault.name, row)

    def _judge(self, workload: Workload, fault: Fault, root: Path, row: Row) -> None:
        if fault.exchange:
            # Whole at every moment, before anything is repaired.
            self._require_whole(workload, root, row, f"after {fault.name}")
        else:
            # As the next command does where it begins.
            places = [root, *(place for place in root.iterdir() if place.is_dir())]
            self._in_process(lambda: [partials.clean(place) for place in places])
            self._require_whole(workload, root, row, f"after {fault.name} and the cleaning")
        end = self._in_process(lambda: workload.work(root))
        if end not in (DONE, REFUSED) or (end == REFUSED and workload.repeats):
            row.lost += 1
            row.complain(f"the next run ended: {end}: {self._said}")
            return
        state = self._require_whole(workload, root, row, f"after the run that followed {fault.name}")
        if state not in (NEW, None):
            row.lost += 1
            row.complain(f"after the next run there is: {state}")
        if hidden := leftovers(root):
            row.left += 1
            row.complain(f"left over: {', '.join(hidden[:3])}")

    def _require_whole(self, workload: Workload, root: Path, row: Row, when: str) -> str | None:
        try:
            state = workload.state(root)
        # Damaged files can raise any error.
        except Exception as error:
            row.lost += 1
            row.complain(f"{when}: {type(error).__name__}: {error}")
            return None
        if state == ABSENT and workload.before != ABSENT:
            row.lost += 1
            row.complain(f"{when} the earlier result is gone")
        return state

    def _faults(self, workload: Workload) -> Iterator[Fault]:
        count = self._counts[workload.name]
        for at in range(1, count + 1):
            for exchange in (True, False):
                name = KILL if exchange else f"{KILL}, no exchange"
                yield Fault(name, _at(at, kill), exchange=exchange)
            yield Fault(f"{KILL} in clean-up", self._kill_in_clean_up(at))
            for error in (FULL, READ_ONLY, DENIED, BROKEN):
                assert error in ERRORS
                yield Fault(error, _at(at, error_of(error)))
            for sent in (INTERRUPT, TERMINATE):
                yield Fault(sent, _at(at, signal_of(sent)))
        for _ in range(max(count // 4, 3)):
            after = self._dice.uniform(0, workload.seconds)
            yield Fault("Ctrl+C at any moment", lambda root, after=after: interrupt_after(after))
            after = self._dice.uniform(0, workload.seconds)
            yield Fault("kill at any moment", lambda root, after=after: _kill_after(after))
            size = int(10 ** self._dice.uniform(1, 5))
            yield Fault("limit of file size", lambda root, size=size: limit("file size", size))
            files = self._dice.randint(3, 40)
            yield Fault("limit of open files", lambda root, files=files: limit("open files", files))
            yield Fault("two at once", lambda root: None, at_once=2)
            if self._can_mount:
                # SQLite does its own writing, which Python does not announce: there is no moment to choose.
                for kind in _MOUNT_KINDS if count else _MOUNT_KINDS[:1]:
                    yield self._of_mount(kind, self._dice.randint(1, max(count, 1)), self._dice.randint(4, 400) << 10)

    def _kill_in_clean_up(self, at: int) -> Callable[[Path], Injector]:
        """Ctrl+C at one operation, and a kill at a later one: while what was begun is removed."""

        def begin(root: Path) -> Injector:
            later = self._dice.randint(1, 4)

            def act(_: object) -> None:
                second = Injector(root, later, kill)
                second.install()
                raise KeyboardInterrupt

            return Injector(root, at, act)

        return begin

    def _of_mount(self, kind: str, at: int, size: int) -> Fault:
        def begin(root: Path) -> Injector | None:
            if kind == "full disk":
                return None
            command = ["mount", "-o", "remount,ro,bind", str(root)]
            if kind == "vanished disk":
                command = ["umount", "--lazy", str(root)]
            return Injector(root, at, lambda _: subprocess.run(command, check=True, capture_output=True) and None)

        return Fault(kind, begin, lambda root: _mounted(root, kind, size))

    def _work(self, workload: Workload, root: Path, fault: Fault) -> None:
        if not fault.exchange:
            writing.exchange = lambda one, other: False
        injector = fault.begin(root)
        if injector is not None:
            injector.install()
        workload.work(root)

    def _fresh(self, workload: Workload) -> Path:
        root = self._place / "work" / workload.name
        partials._cleaned.clear()
        return fresh(workload, self._templates[workload.name], root)

    def _in_process(self, work: Callable[[], object]) -> str:
        process, said = self._start(work)
        end = self._end_of(process)
        self._said = _text(said)
        return end

    def _start(self, work: Callable[[], object]) -> tuple[int, Path]:
        said = self._place / f"said-{self._dice.randrange(10**9)}"
        process = os.fork()
        if process == 0:
            code = 1
            try:
                # As the command line does.
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                work()
                code = 0
            except KeyboardInterrupt:
                code = 130
            except UserError:
                code = 2
            except (MemoryError, OSError) as error:
                # These the command line turns into one line; others are tracebacks.
                code = _code_of(error)
                if code == 1:
                    _write(said, traceback.format_exc())
            except BaseException:
                _write(said, traceback.format_exc())
            finally:
                os._exit(code)
        return process, said

    def _end_of(self, process: int) -> str:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return HUNG
            time.sleep(0.002)
        if os.WIFSIGNALED(status):
            return KILLED
        return _CODES.get(os.WEXITSTATUS(status), TRACEBACK)


def _at(at: int, act: Callable[[Any], None]) -> Callable[[Path], Injector]:
    return lambda root: Injector(root, at, act)


def _kill_after(seconds: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _code_of(error: BaseException) -> int:
    """The exit code that the command line gives: 1 stands for a traceback or a line that says nothing."""
    from dcaseg.cli.console import run_command

    def fail() -> None:
        raise error

    with contextlib.redirect_stderr(open(os.devnull, "w")):  # noqa: PTH123
        return int(run_command(fail))


def _write(path: Path, text: str) -> None:
    with contextlib.suppress(OSError):
        path.write_text(text)


def _text(said: Path) -> str:
    if not said.exists():
        return ""
    text = said.read_text()
    said.unlink()
    return text


def _can_mount(place: Path) -> bool:
    (place / "mount").mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place / "mount")], capture_output=True)
    if mounted.returncode == 0:
        subprocess.run(["umount", str(place / "mount")], check=True)
    return mounted.returncode == 0


@contextlib.contextmanager
def _mounted(root: Path, kind: str, free: int) -> Iterator[None]:
    """What lies in ``root`` on a disk of its own, with ``free`` bytes left where it is to become full."""
    on_disk = root.with_name(f"{root.name}-on-disk")
    shutil.rmtree(on_disk, ignore_errors=True)
    if kind == "full disk":
        shutil.move(root, on_disk)
        root.mkdir()
        # Pages of 4 KiB for each file.
        used = sum((path.stat().st_size + 4095) // 4096 + 1 for path in on_disk.rglob("*")) * 4096
        size = f"size={used + free}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(root)], check=True)
        shutil.copytree(on_disk, root, dirs_exist_ok=True, symlinks=True)
        try:
            yield
            shutil.rmtree(on_disk)
            shutil.copytree(root, on_disk, symlinks=True)
        finally:
            subprocess.run(["umount", "--lazy", str(root)], check=True)
    else:
        root.rename(on_disk)
        root.mkdir()
        subprocess.run(["mount", "--bind", str(on_disk), str(root)], check=True)
        try:
            yield
        finally:
            # Gone already where it was to vanish.
            subprocess.run(["umount", "--lazy", str(root)], check=False, capture_output=True)
    # Where the disk had been is an empty folder, into which the work may have gone on.
    shutil.rmtree(root)
    on_disk.rename(root)
