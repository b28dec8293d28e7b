"""Locks that the kernel lets go when their holder dies: one a run, one for the device."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from core import fsio, paths
from core.errors import UserError
from core.jobs import processes


class FileLock:
    """An exclusive ``flock`` for as long as this object is open.

    The descriptor is not inherited by children, so a job cannot outlive its supervisor's lock;
    that of the device is handed to the job, which must not lose the device with its supervisor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self, timeout: float = 0.0) -> bool:
        """Take the lock, trying for ``timeout`` seconds; False if another has it.

        A reader that looks whether the lock is held takes it, shared, for microseconds; a
        timeout of a second rides over that.

        Raises:
            UserError: the disk refuses the file.
        """
        with fsio.disk_errors(f"{self.path} cannot be locked"):
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        if not stat.S_ISREG(os.fstat(fd).st_mode):  # a pipe has no place to say who holds it
            os.close(fd)
            raise UserError(
                f"{self.path} cannot be locked", why="it is no ordinary file", fix="remove it"
            )
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._fd = fd
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(fd)
                    return False
                time.sleep(0.02)

    def write(self, text: str) -> None:
        """Say in the file who holds it. In place: a rename would lose the lock."""
        assert self._fd is not None, "write() needs the lock"
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, text.encode(), 0)

    def release(self) -> None:
        """Idempotent; also where a child has inherited the descriptor."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = None

    @property
    def descriptor(self) -> int | None:
        """To hand on: the lock is then held until the last process that has it is gone."""
        return self._fd


def is_held(path: Path) -> bool:
    """Whether some process holds the lock. Free is what cannot be opened, as nobody holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


@contextmanager
def creation_lock() -> Iterator[None]:
    """Serialises the making of runs, so that two presses of Start cannot both find none."""
    folder = paths.runs_dir()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".create.lock")
    if not lock.acquire(timeout=10.0):
        raise UserError(
            "another window is starting a run and does not finish", fix="try again in a moment"
        )
    try:
        yield
    finally:
        lock.release()


@dataclass(frozen=True)
class Holder:
    """Who has the device.

    Attributes:
        what: for people, e.g. ``train 20261124-1940-kai-1f2e`` or ``chat``.
        run: the run's id, if it is one.
        pid: of the process that holds the lock.
        started: its start time, seconds since the epoch; pids are used again.
        folder: of the run, '' if it is none.
        mark: of the run's processes.
    """

    what: str
    run: str | None
    pid: int
    started: float = 0.0
    folder: str = ""
    mark: str = ""


def device_lock_path() -> Path:
    """One device a workspace: two torch processes on one machine slow each other many times."""
    return paths.runs_dir() / ".device.lock"


def device_holder() -> Holder | None:
    """Who holds the device now; None if it is free."""
    path = device_lock_path()
    if not is_held(path):
        return None
    try:
        return Holder(**json.loads(fsio.read_text(path)))
    except (OSError, ValueError, TypeError):
        return Holder("another process", None, 0)  # between its flock and its note


def end_removed_holder() -> None:
    """Take the device from a run whose folder somebody removed.

    Its supervisor ends by itself, unless it is stopped: then it is woken. If it is gone, its job
    holds the device alone, and no folder is left to end it through.
    """
    holder = device_holder()
    if holder is None or not holder.folder or Path(holder.folder).exists():
        return
    supervisor = processes.same_process(holder.pid, holder.started)
    if supervisor is not None:
        processes.signal_all([supervisor], signal.SIGCONT)
    elif holder.mark:
        processes.signal_all(processes.processes_of(holder.mark), signal.SIGKILL)


class DeviceLock:
    """The right to load a model. Used by jobs (which queue) and by chat (which does not)."""

    def __init__(self, what: str, folder: Path | None = None, mark: str = "") -> None:
        started = psutil.Process().create_time()
        run = folder.name if folder else None
        self.holder = Holder(what, run, os.getpid(), started, str(folder or ""), mark)
        self._lock = FileLock(device_lock_path())

    def acquire(self, timeout: float = 0.5) -> bool:
        """False if somebody else has it; ``device_holder()`` tells who."""
        self._lock.path.parent.mkdir(parents=True, exist_ok=True)
        if not self._lock.acquire(timeout):
            end_removed_holder()
            return False
        self._lock.write(json.dumps(asdict(self.holder)))
        return True

    def acquire_in_turn(self, seq: int, give_up: Callable[[], bool], poll: float = 0.3) -> bool:
        """Wait behind every run with a smaller ``seq`` that waits too.

        Returns:
            False if ``give_up()`` became true first.
        """
        queue = paths.runs_dir() / ".queue"
        with fsio.disk_errors(f"{queue} cannot be made"):
            queue.mkdir(parents=True, exist_ok=True)
        ticket = FileLock(queue / f"{seq:010d}")
        if not ticket.acquire(timeout=1.0):
            raise RuntimeError(f"queue ticket {seq} is taken")
        try:
            while not give_up():
                if not _earlier_waits(queue, ticket.path.name) and self.acquire(timeout=0.0):
                    return True
                time.sleep(poll)
            return False
        finally:
            ticket.path.unlink(missing_ok=True)
            ticket.release()

    def release(self) -> None:
        """Idempotent."""
        self._lock.release()

    @property
    def descriptor(self) -> int | None:
        """For the process that uses the device, so that it keeps it if its supervisor dies."""
        return self._lock.descriptor


def _earlier_waits(queue: Path, mine: str) -> bool:
    for path in sorted(queue.iterdir()):
        if path.name >= mine:
            return False
        if is_held(path):
            return True
        with suppress(OSError):  # a folder is no ticket, and stays
            path.unlink(missing_ok=True)  # its waiter died
    return False
