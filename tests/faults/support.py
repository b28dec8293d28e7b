"""Waiting for runs and looking at their processes; shared by the fault tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from core import fsio
from core.jobs import api, processes
from core.jobs.spec import read_spec
from core.jobs.state import State, Status
from core.paths import RunPaths

TRAINER = Path(__file__).resolve().parent.parent / "fakes" / "trainer.py"

#: Makes a run of the fake trainer; keyword options as in core.jobs.spec.Options.
MakeRun = Callable[..., RunPaths]


def trainer_argv(folder: Path, *flags: object) -> list[str]:
    return [sys.executable, str(TRAINER), str(folder), *map(str, flags)]


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for a condition; fail with its name after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true after {seconds} s"
        time.sleep(0.03)


def reach(run: RunPaths, state: State, seconds: float = 10.0) -> Status:
    """Wait for a state."""
    until(lambda: api.status(run).state is state or api.status(run).final, seconds)
    now = api.status(run)
    assert now.state is state, (now.state, now.reason, now.log_tail[-500:])
    return now


def reach_step(run: RunPaths, step: int) -> None:
    """Wait until the run has printed so many steps."""
    until(lambda: api.status(run).done >= step)


def leftovers(run: RunPaths) -> list[int]:
    """Living processes of a run."""
    return [p.pid for p in processes.processes_of(read_spec(run).mark)]


def supervisor_of(run: RunPaths) -> psutil.Process:
    return psutil.Process(fsio.read_json(run.supervisor)["pid"])
