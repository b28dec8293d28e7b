"""Watches one job: ``python -m core.jobs.supervisor RUN_DIR``, or ``--wait KIND MARK`` (standby).

A process in a session of its own, so that it outlives the page, the server and the terminal that
started it. It holds the run's lock for life, starts the child, turns its output into metrics and
events, stops it when asked, and writes ``exit.json`` as its last act. Standard library, psutil
and pydantic only: it must start in a blink and never fail because a heavy library does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from core import fsio
from core.errors import ErrorRecord, UserError
from core.jobs import processes, reasons, records, standby
from core.jobs.journal import Journal, LogFollower, parse_record, tail
from core.jobs.kinds import kind_of
from core.jobs.locks import DeviceLock, FileLock, device_holder
from core.jobs.observe import read_error
from core.jobs.spec import RunSpec, read_spec
from core.jobs.standby import WaitingChild
from core.jobs.state import Reason, State
from core.jobs.watcher import OutputWatcher
from core.paths import RunPaths

#: Exit status of a supervisor that found the run already started.
ALREADY_STARTED = 3
_POLL = 0.2
#: Freed before ``exit.json`` is written, so that a full disk cannot leave a run without an end.
_RESERVE_BYTES = 32 * 1024
#: Less room than this is a full disk.
_PROBE_BYTES = 1 << 20


class Supervisor:
    """One run, from the lock to ``exit.json``."""

    def __init__(self, run: RunPaths, spec: RunSpec, ready: WaitingChild | None = None) -> None:
        self.run = run
        self.spec = spec
        self.ready = ready
        self.events = Journal(run.events)
        self.device = DeviceLock(f"{spec.kind} {run.root.name}", run.root, spec.mark)
        self.log = LogFollower(run.log)
        self.secret = ready.secret if ready else secrets.token_hex(16)
        self.watcher = OutputWatcher(spec, Journal(run.metrics), self.event, self.secret)
        self.began = time.monotonic()
        self.child_pid: int | None = None
        self.child_status: int | None = None
        self.processor = 0.0
        self.signalled = False
        self.was_full = False
        self._record: dict[str, Any] = {}

    # -- what is written ---------------------------------------------------------------------

    def event(self, event: str, **fields: Any) -> None:
        """One line of events.jsonl."""
        self.events.append(
            {
                "t": round(time.monotonic() - self.began, 3),
                "time": time.time(),
                "event": event,
                **fields,
            }
        )

    def write_record(self, **fields: Any) -> None:
        """supervisor.json. A full disk keeps the older one, which is still true enough."""
        self._record |= fields
        with suppress(UserError):
            fsio.write_json(self.run.supervisor, self._record)

    def begin(self) -> None:
        """From here on the run counts as started."""
        fsio.atomic_write_bytes(self._reserve, bytes(_RESERVE_BYTES))
        self._record = {
            "schema": 1,
            "pid": os.getpid(),
            "start_time": psutil.Process().create_time(),
            "boot_id": processes.boot_id(),
            "mark": self.spec.mark,
            "child_pid": None,
            "child_start_time": None,
            "started": time.time(),
            "monotonic": self.began,
        }
        fsio.write_json(self.run.supervisor, self._record)
        self.event("state", state=State.STARTING)

    @property
    def _reserve(self) -> Path:
        return self.run.root / ".reserve"

    def finish(
        self,
        state: State,
        reason: Reason,
        error: ErrorRecord | None = None,
        left_over: list[int] | None = None,
    ) -> None:
        """Write exit.json. Tried for a minute: without it the run would read as LOST."""
        self._reserve.unlink(missing_ok=True)
        self.event("state", state=state, reason=reason)
        record = {
            "schema": 1,
            "state": state,
            "reason": reason,
            "returncode": self.child_status,
            "ended": time.time(),
            "elapsed": time.monotonic() - self.began,
            "processor": round(self.processor, 2),
            "error": error,
            "left_over": left_over or [],
        }
        for _ in range(60):
            if not self.run.spec.exists():
                # Deleted under us: nobody is left to tell, and what a dying job wrote is debris.
                shutil.rmtree(self.run.root, ignore_errors=True)
                return
            try:
                fsio.write_json(self.run.exit, record)
                return
            except UserError:
                time.sleep(1)

    # -- the run -----------------------------------------------------------------------------

    def stop_wanted(self) -> bool:
        """Somebody pressed stop, or we were told to go, or the directory is gone."""
        return self.signalled or self.run.stop.exists() or not self.run.spec.exists()

    def supervise(self) -> None:
        """Wait for the device, run the child, say how it ended; also after a fault of our own."""
        self.begin()
        try:
            self._supervise()
        except Exception as error:
            # Whatever it is: a run that nobody watches or that has no end is worse.
            traceback.print_exc()
            running = self.child_pid is not None and self.child_status is None
            left = self.end_child() if running else []
            told = UserError(
                "the supervisor of this run failed",
                why="".join(traceback.format_exception_only(error)).strip()[:1000],
                fix="resume from the newest checkpoint, or start again; log.txt says where it was",
            )
            self.finish(State.FAILED, Reason.INCOMPLETE, told.to_dict(), left)

    def _supervise(self) -> None:
        if kind_of(self.spec.kind).waits(self.spec.params) and not self.wait_for_device():
            self.finish(State.STOPPED, self._stop_reason())
            return
        try:
            self.start_child()
        except OSError as error:
            self.finish(
                State.FAILED,
                Reason.BAD_CONFIG,
                UserError(
                    f"cannot start {self.spec.argv[:1]}", str(error), "check the command"
                ).to_dict(),
            )
            return
        halted = self.follow_child()
        left = self.end_child() if self.child_status is None or halted else self.sweep()
        self.read_output()
        self.device.release()
        self.conclude(halted, left)

    def wait_for_device(self) -> bool:
        """Queue; False if the run was stopped while it waited."""
        holder = device_holder()
        if holder is not None:
            self.event("queued", behind=holder.what)
        return self.device.acquire_in_turn(self.spec.seq, self.stop_wanted)

    def start_child(self) -> None:
        """Own session, output straight into the log (a pipe would tie it to our life)."""
        held = [fd] if (fd := self.device.descriptor) is not None else []
        with self.run.log.open("ab") as log:
            if self.ready and self.ready.begin(self.run, [log.fileno(), *held]):
                child = self.ready.process
            else:
                child = self._new_child(log, held)
        self.child_pid = child.pid
        child.returncode = 0  # reap() collects it; Popen must not
        start_time = None
        with suppress(psutil.Error):
            start_time = psutil.Process(child.pid).create_time()
        self.write_record(child_pid=child.pid, child_start_time=start_time)
        self.event("state", state=State.RUNNING, child_pid=child.pid)

    def _new_child(self, log: BinaryIO, held: Sequence[int]) -> subprocess.Popen[bytes]:
        argv = list(self.spec.argv) or [sys.executable, "-m", "core.jobs.child", str(self.run.root)]
        env = processes.job_environment(self.spec.mark, self.spec.options.pass_env)
        env[records.SECRET] = self.secret
        return processes.begin(argv, env, log=log, pass_fds=held)

    def reap(self) -> None:
        """Collect whatever ended: the child, and grandchildren that were left to us."""
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.processor += used.ru_utime + used.ru_stime
            if pid == self.child_pid:
                self.child_status = os.waitstatus_to_exitcode(status)

    def read_output(self) -> None:
        """All that the log has gained."""
        while True:
            before = self.log.size
            self.watcher.feed(self.log.lines())
            if self.log.size == before:
                return

    def follow_child(self) -> Reason | None:
        """Until the child ends by itself (None) or has to be ended (why)."""
        while True:
            self.reap()
            ended = self.child_status is not None
            self.watcher.feed(self.log.lines())
            self.was_full = self.was_full or self._no_room()
            if ended:
                return None
            if self.stop_wanted():
                return self._stop_reason()
            if self.watcher.give_up is not None:
                return self.watcher.give_up
            time.sleep(_POLL)

    def _stop_reason(self) -> Reason:
        return Reason.KILLED_SIGNAL if self.signalled else Reason.USER_STOP

    def end_child(self) -> list[int]:
        """Group, descendants listed beforehand, grace, SIGKILL, sweep by mark."""
        assert self.child_pid is not None
        self.event("state", state=State.STOPPING)
        # The list first: once the child is dead its descendants are nobody's.
        listed = self._ours()
        with suppress(ProcessLookupError):
            os.killpg(self.child_pid, signal.SIGTERM)
            os.killpg(self.child_pid, signal.SIGCONT)  # a paused process hears nothing else
        return processes.end_processes(
            lambda: [*listed, *self._ours()],
            self.spec.options.grace_seconds,
            while_waiting=self._waiting,
        )

    def sweep(self) -> list[int]:
        """What a child that ended by itself has left behind."""
        return processes.end_processes(lambda: self._ours(), grace=2.0, while_waiting=self._waiting)

    def _ours(self) -> list[psutil.Process]:
        """Of the run by mark, and what was left to us, whatever became of its environment."""
        return [*processes.processes_of(self.spec.mark, self.child_pid), *processes.adopted()]

    def _waiting(self) -> bool:
        """Keep reaping and reading while processes die; True once force is asked for."""
        self.reap()
        self.watcher.feed(self.log.lines())
        return force_wanted(self.run) or not self.run.spec.exists()

    def conclude(self, halted: Reason | None, left: list[int]) -> None:
        """Cancelled beats failed beats finished."""
        self.reap()
        log_tail = tail(self.run.log)
        if halted in (Reason.USER_STOP, Reason.KILLED_SIGNAL):
            self.finish(State.STOPPED, halted, left_over=left)
            return
        if halted is None and self.child_status == 0 and self._has_result():
            self.finish(State.SUCCEEDED, Reason.COMPLETED, left_over=left)
            return
        status = self.child_status if self.child_status is not None else -signal.SIGKILL
        table = reasons.table_of(self.spec, self.run)
        if halted is not None:
            self.finish(State.FAILED, halted, reasons.given_up(halted, table), left)
            return
        error = read_error(self.run)
        fault = reasons.diagnose(table, log_tail, returncode=status, error=error)
        silent = fault.reason in (Reason.INCOMPLETE, Reason.KILLED_SIGNAL)
        if silent and (self.was_full or self._disk_is_full()):
            # The job could not even say so: its log is on the same disk.
            fault = reasons.diagnose(table, "No space left on device", returncode=status)
        self.finish(State.FAILED, fault.reason, reasons.account(status, fault, error), left)

    def _no_room(self) -> bool:
        """Whether the disk is full just now; once the torn file is gone nobody could tell."""
        try:
            return shutil.disk_usage(self.run.root).free < _PROBE_BYTES
        except OSError:
            return False  # the folder was removed

    def _disk_is_full(self) -> bool:
        """By trying: quotas and limits count too. The reserve is not given up for it."""
        try:
            fsio.atomic_write_bytes(self.run.root / ".probe", bytes(_PROBE_BYTES))
        except UserError:
            return self.run.root.is_dir()
        (self.run.root / ".probe").unlink(missing_ok=True)
        return False

    def _has_result(self) -> bool:
        try:
            return parse_record(fsio.read_bytes(self.run.result)) is not None
        except OSError:
            return False


def force_wanted(run: RunPaths) -> bool:
    """Whether the stop request asks to skip the grace."""
    try:
        return bool((parse_record(fsio.read_bytes(run.stop)) or {}).get("force"))
    except OSError:
        return False


def main(argv: list[str]) -> int:
    """Take the lock or leave at once; then supervise."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    processes.become_subreaper()
    if argv[1] != standby.WAIT:
        return _supervise(RunPaths(Path(argv[1]).resolve()))
    ready = WaitingChild(argv[2], argv[3])
    try:
        folder = standby.supervised()
        if folder is None:
            return 0
        run = RunPaths(folder)
        standby.write_to_log(run)
        return _supervise(run, ready)
    finally:
        ready.close()


def _supervise(run: RunPaths, ready: WaitingChild | None = None) -> int:
    spec = read_spec(run)
    lock = FileLock(run.lock)
    if not lock.acquire(timeout=1.5) or run.supervisor.exists() or run.exit.exists():
        return ALREADY_STARTED
    if run.stop.exists():
        return ALREADY_STARTED  # stopped before it was started
    supervisor = Supervisor(run, spec, ready)

    def on_term(_number: int, _frame: object) -> None:
        supervisor.signalled = True

    signal.signal(signal.SIGTERM, on_term)
    supervisor.supervise()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
