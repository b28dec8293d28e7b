"""Ends a run whose supervisor does not: one that is stopped, stuck, or gone."""

from __future__ import annotations

import signal
import time

from core import fsio
from core.jobs import locks, processes
from core.jobs.observe import elapsed, read_record
from core.jobs.state import Reason, State
from core.paths import RunPaths


def heard(run: RunPaths, seconds: float = 8.0) -> bool:
    """Whether the supervisor ends the run; if it does not (stopped, stuck), it is killed."""
    record = read_record(run.supervisor) or {}
    supervisor = processes.same_process(record.get("pid"), record.get("start_time"))
    if supervisor is None:
        return True  # it is not there yet, or gone: its lock says more
    processes.signal_all([supervisor], signal.SIGCONT)  # a stopped process hears nothing
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if run.exit.exists() or not run.spec.exists():
            return True
        time.sleep(0.1)
    processes.signal_all([supervisor], signal.SIGKILL)
    return False


def close(run: RunPaths, left: list[int]) -> None:
    """Write the end of a run whose supervisor is gone and whose processes we have ended."""
    lock = locks.FileLock(run.lock)
    if not lock.acquire(timeout=2.0):
        return
    try:
        if not run.exit.exists():
            record = read_record(run.supervisor) or {}
            fsio.write_json(
                run.exit,
                {
                    "schema": 1,
                    "state": State.STOPPED,
                    "reason": Reason.USER_STOP,
                    "ended": time.time(),
                    "elapsed": elapsed(record, None, time.time()) or 0.0,
                    "left_over": left,
                },
            )
    finally:
        lock.release()
