"""A random walk over everything that can happen to runs: ``pytest -m soak`` (ten minutes).

PERSONA_SOAK_SECONDS and PERSONA_SOAK_SEED choose another length or walk; the seed is printed.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from core.errors import UserError
from core.jobs import api, locks, observe
from core.jobs.spec import Options, read_spec
from core.jobs.state import FINAL, State
from core.paths import RunPaths
from tests.faults.support import leftovers, trainer_argv, until

SECONDS = float(os.environ.get("PERSONA_SOAK_SECONDS", "600"))
SEED = int(os.environ.get("PERSONA_SOAK_SEED", str(time.time_ns() % 10**6)))


class Walk:
    """Runs of the fake trainer, and what may be done to them."""

    def __init__(self, workspace: Path) -> None:
        self.root = workspace / "runs"
        self.random = random.Random(SEED)
        self.count = 0
        self.marks: dict[str, RunPaths] = {}
        self.moves: list[Callable[[], object]] = [
            self.start, self.start, self.stop, self.force, self.kill_supervisor, self.pause,
            self.kill_child, self.delete, self.remove, self.spoil, self.fill,
        ]  # fmt: skip

    def any(self) -> RunPaths | None:
        found = [RunPaths(s.root) for s in api.list_runs()]
        return self.random.choice(found) if found else None

    def start(self) -> None:
        if sum(s.state not in FINAL for s in api.list_runs()) > 4:
            return
        folder = self.root / f"soak-{self.count}"
        self.count += 1
        flags: list[object] = ["--steps", self.random.choice([3, 40, 2000])]
        flags += self.random.choice([[], ["--stubborn"], ["--leave-behind"], ["--exit", 7]])
        run = api.create(
            "command", {}, name="soak", run_dir=folder, argv=trainer_argv(folder, *flags),
            options=Options(grace_seconds=0.5),
        )  # fmt: skip
        self.marks[read_spec(run).mark] = run
        api.start(run, timeout=30)

    def stop(self) -> None:
        if run := self.any():
            api.stop(run)

    def force(self) -> None:
        if run := self.any():
            api.stop(run, force=True)

    def _signal(self, number: signal.Signals, key: str) -> None:
        if run := self.any():
            record = observe.read_record(run.supervisor) or {}
            start = "start_time" if key == "pid" else "child_start_time"
            process = api.processes.same_process(record.get(key), record.get(start))
            if process is not None:
                with suppress(psutil.Error):
                    process.send_signal(number)

    def kill_supervisor(self) -> None:
        self._signal(signal.SIGKILL, "pid")

    def pause(self) -> None:
        self._signal(signal.SIGSTOP, self.random.choice(["pid", "child_pid"]))

    def kill_child(self) -> None:
        self._signal(signal.SIGKILL, "child_pid")

    def delete(self) -> None:
        if run := self.any():
            api.delete(run)

    def remove(self) -> None:
        if run := self.any():
            shutil.rmtree(run.root, ignore_errors=True)

    def spoil(self) -> None:
        if run := self.any():
            name = self.random.choice(["exit.json", "metrics.jsonl", "supervisor.json", "stop"])
            (run.root / name).write_text(
                self.random.choice(["", "{", "[[[[", '{"state": 3}', "\0"])
            )

    def fill(self) -> None:
        """What a full disk leaves: records that cannot be appended to."""
        if run := self.any():
            with suppress(OSError):
                run.events.unlink(missing_ok=True)
                run.events.symlink_to("/dev/full")

    def step(self) -> None:
        with suppress(UserError, FileNotFoundError):  # FileNotFoundError: removed meanwhile
            self.random.choice(self.moves)()
        for summary in api.list_runs():  # whatever happened: lists and looks work
            with suppress(UserError):
                api.status(RunPaths(summary.root))

    def end(self) -> None:
        """Everything can be ended, and then nothing is left."""
        for summary in api.list_runs():
            with suppress(UserError):
                api.stop(RunPaths(summary.root), force=True)
        until(lambda: all(s.state in (*FINAL, State.CREATED) for s in api.list_runs()), 60)
        until(lambda: locks.DeviceLock("whoever comes next").acquire(), 60)


def _started_in(workspace: Path) -> dict[psutil.Process, str]:
    """Living processes with this workspace on their command line, and what each does now."""
    found = {}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(workspace) in part for part in process.cmdline()):
                found[process] = process.status()
    return found


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_a_random_walk(workspace: Path) -> None:
    print(f"PERSONA_SOAK_SEED={SEED}")
    walk = Walk(workspace)
    end = time.monotonic() + SECONDS
    steps = 0
    while time.monotonic() < end:
        walk.step()
        steps += 1
        time.sleep(walk.random.random() * 0.3)
    walk.end()
    for mark in walk.marks:
        for process in api.processes.processes_of(mark):
            process.kill()  # of runs that were removed while their supervisor was stopped
    # Of those runs too: nothing but a stopped supervisor stays.
    until(lambda: set(_started_in(workspace).values()) <= {psutil.STATUS_STOPPED}, 60)
    for left in _started_in(workspace):
        left.kill()
    print(f"{steps} steps, {walk.count} runs")
    for summary in api.list_runs():
        with suppress(UserError):
            assert leftovers(RunPaths(summary.root)) == []
