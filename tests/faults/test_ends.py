"""Ends of processes that nobody watches any more, or that do not hear."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from core import paths
from core.jobs import api
from core.jobs.locks import DeviceLock, device_holder
from core.jobs.state import Reason, State
from tests.faults.support import MakeRun, leftovers, reach, reach_step, supervisor_of, until


def test_force_ends_a_run_whose_supervisor_is_stopped(make_run: MakeRun) -> None:
    run = make_run("--steps", 2000)
    reach_step(run, 2)
    supervisor_of(run).suspend()
    api.stop(run, force=True)
    until(lambda: api.status(run).final, 20)
    assert api.status(run).state is State.STOPPED
    assert leftovers(run) == []


def test_force_kills_a_supervisor_that_hears_nothing(
    make_run: MakeRun, monkeypatch: object
) -> None:
    run = make_run("--steps", 2000)
    reach_step(run, 2)
    supervisor = supervisor_of(run)
    stopper = subprocess.Popen(  # stops it again and again, as a debugger would
        [sys.executable, "-c", "import os,signal,time,sys\nwhile True:\n"
         f" os.kill({supervisor.pid}, signal.SIGSTOP); time.sleep(0.002)"]
    )  # fmt: skip
    try:
        api.stop(run, force=True)
        until(lambda: api.status(run).final, 20)
    finally:
        stopper.kill()
        stopper.wait()
    assert api.status(run).state is State.STOPPED
    assert leftovers(run) == []


def test_an_orphan_that_is_stopped_has_an_end(make_run: MakeRun) -> None:
    run = make_run("--steps", 2000)
    reach_step(run, 2)
    supervisor_of(run).kill()
    reach(run, State.ORPHANED)
    api.stop(run)
    now = api.status(run)
    assert (now.state, now.reason) == (State.STOPPED, Reason.USER_STOP)
    assert leftovers(run) == []
    before = now.elapsed_seconds
    time.sleep(0.3)
    assert api.status(run).elapsed_seconds == before


def test_the_device_stays_with_a_child_whose_supervisor_died(make_run: MakeRun) -> None:
    run = make_run("--steps", 2000)
    reach_step(run, 2)
    supervisor_of(run).kill()
    reach(run, State.ORPHANED)
    assert not DeviceLock("another").acquire(timeout=0.2)
    holder = device_holder()
    assert holder is not None and run.root.name in holder.what
    api.stop(run, force=True)
    until(lambda: DeviceLock("another").acquire(timeout=0.2))


@pytest.mark.parametrize("supervisor_is", ["stopped", "dead"])
def test_a_removed_run_gives_the_device_back(make_run: MakeRun, supervisor_is: str) -> None:
    run = make_run("--steps", 2000)
    reach_step(run, 2)
    supervisor = supervisor_of(run)
    supervisor.suspend() if supervisor_is == "stopped" else supervisor.kill()
    until(lambda: shutil.rmtree(run.root, ignore_errors=True) or not run.root.exists())
    until(lambda: DeviceLock("another").acquire(timeout=0.2), 20)


def test_a_deleted_live_run_does_not_come_back(make_run: MakeRun) -> None:
    run = make_run("--steps", 2000)
    reach_step(run, 2)
    supervisor = supervisor_of(run)
    for _ in range(20):  # the run writes while it is removed
        shutil.rmtree(run.root, ignore_errors=True)
        if not run.root.exists():
            break
    run.work.mkdir(parents=True)  # what a training process that saves a checkpoint does
    (run.work / "iter_4.pth").write_text("x")
    until(lambda: not supervisor.is_running() or supervisor.status() == psutil.STATUS_ZOMBIE, 20)
    assert not run.root.exists()


def test_a_chat_worker_whose_client_dies_while_it_loads_ends_at_once(workspace: Path) -> None:
    slow = (
        "import sys, time\n"
        "from core.chat import worker\n"
        "class Slow:\n"
        "    def load(self, columns):\n"
        "        end = time.monotonic() + 60\n"
        "        while time.monotonic() < end: sum(range(1000))\n"
        "    def cancel(self, column=None): pass\n"
        "worker.Worker._ready = lambda self: setattr(self, '_engine', Slow()) or self._engine\n"
        "worker.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        cwd=paths.REPO, env={**os.environ, "PERSONA_HOME": str(workspace)},
    )  # fmt: skip
    assert process.stdin is not None
    request = {"id": 1, "op": "load", "columns": []}
    process.stdin.write(json.dumps(request).encode() + b"\n")
    process.stdin.flush()
    until(lambda: device_holder() is not None, 30)
    process.stdin.close()
    process.wait(timeout=5)
    assert device_holder() is None


def test_signals_reach_a_paused_child(make_run: MakeRun) -> None:
    run = make_run("--steps", 2000)
    reach_step(run, 2)
    for pid in leftovers(run):
        os.kill(pid, signal.SIGSTOP)
    api.stop(run)
    until(lambda: api.status(run).final, 20)
    assert leftovers(run) == []


def test_what_gave_up_its_mark_and_its_parent_is_ended(workspace: Path) -> None:
    """A process in a session of its own, with nothing in its environment, whose parent is gone."""
    pid = workspace / "pid"
    forgets = (
        "import os, subprocess\nos.setsid()\n"
        "child = subprocess.Popen(['sleep', '300'], env={})\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid))"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {forgets!r}])"
    run = api.create("command", {}, name="forgets", argv=[sys.executable, "-c", code])
    api.start(run)
    until(lambda: api.status(run).final, 40)
    until(lambda: not psutil.pid_exists(int(pid.read_text())), 10)
