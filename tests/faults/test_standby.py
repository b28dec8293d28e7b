"""Processes that wait for a run: it is like any other once it has begun, and nobody waits in vain.

The kind ``convert`` is a slow job of tests here, in this process and in those that it starts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core import fsio, paths
from core.jobs import api, kinds, locks, standby
from core.jobs.journal import read_journal
from core.jobs.spec import Options, read_spec
from core.jobs.state import State
from core.paths import RunPaths
from tests.fakes import slow_job
from tests.faults.support import leftovers, reach, reach_step, supervisor_of, until


@pytest.fixture
def slow_kind(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(slow_job.install(tmp_path / "site", needs_device=True)))
    kind = kinds.Kind("convert", slow_job.__name__)
    monkeypatch.setitem(kinds.KINDS, "convert", kind)
    yield
    standby.close()


def launch(steps: int) -> RunPaths:
    return api.launch(slow_job.Spec(steps=steps), name="slow", options=Options(grace_seconds=1.0))


def waiting() -> psutil.Process:
    """The supervisor that waits, once its child is there."""
    standby.prepare("convert")
    supervisor = psutil.Process(standby._waiting[0].process.pid)
    until(supervisor.children)
    return supervisor


def child_of(run: RunPaths) -> psutil.Process:
    return psutil.Process(fsio.read_json(run.supervisor)["child_pid"])


def test_a_run_that_was_waited_for_is_like_any_other(slow_kind: None) -> None:
    supervisor = waiting()
    (child,) = supervisor.children()
    run = launch(40)
    reach_step(run, 3)
    assert supervisor_of(run) == supervisor and child_of(run) == child
    assert os.getsid(child.pid) == child.pid and os.getsid(supervisor.pid) == supervisor.pid
    assert set(leftovers(run)) == {child.pid}  # found by its mark, as after a lost supervisor
    assert api.finish(run) == {"steps": 40}
    log = run.log.read_text()
    assert "the job prints into its log" in log and "nobody reads" not in log
    cold = launch(1)
    assert api.finish(cold) == {"steps": 1}
    assert [r["event"] for r in read_journal(run.events)] == [
        r["event"] for r in read_journal(cold.events)
    ]
    assert read_spec(run).seq < read_spec(cold).seq


def test_stop_ends_it(slow_kind: None) -> None:
    waiting()
    run = launch(10_000)
    reach_step(run, 1)
    api.stop(run)
    reach(run, State.STOPPED)
    assert leftovers(run) == []


def test_it_keeps_the_device_when_its_supervisor_is_killed(slow_kind: None) -> None:
    waiting()
    run = launch(10_000)
    reach_step(run, 1)
    supervisor_of(run).kill()
    until(lambda: api.status(run).state is State.ORPHANED)
    assert locks.is_held(locks.device_lock_path())
    api.stop(run, force=True)
    assert api.status(run).state is State.STOPPED and leftovers(run) == []
    assert not locks.is_held(locks.device_lock_path())


def test_a_run_waits_for_the_device_and_can_be_stopped_meanwhile(slow_kind: None) -> None:
    device = locks.DeviceLock("a test")
    assert device.acquire()
    supervisor = waiting()
    (child,) = supervisor.children()
    run = launch(1)
    until(lambda: api.status(run).stage == "queued")
    api.stop(run)
    reach(run, State.STOPPED)
    device.release()
    until(lambda: not child.is_running())


def test_without_its_child_or_itself_the_run_starts_anew(slow_kind: None) -> None:
    (child,) = waiting().children()
    child.kill()
    assert api.finish(launch(1)) == {"steps": 1}
    supervisor = waiting()
    supervisor.kill()
    standby._waiting[0].process.wait()
    assert api.finish(launch(2)) == {"steps": 2}


def test_other_kinds_and_environments_are_not_its_own(slow_kind: None) -> None:
    supervisor = waiting()
    assert standby.take("train", Options()) is None
    assert standby.take("convert", Options(pass_env=("HF_TOKEN",))) is None
    standby.prepare("convert")
    assert standby._waiting[0].process.pid == supervisor.pid  # it goes on waiting
    standby.close()
    until(lambda: not supervisor.is_running())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_nobody_waits_for_one_that_is_gone(slow_kind: None, how: signal.Signals) -> None:
    script = (
        "import time; from core.jobs import standby; standby.prepare('convert');"
        "print(standby._waiting[0].process.pid, flush=True); time.sleep(60)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", script], cwd=paths.REPO, text=True, stdout=subprocess.PIPE
    )
    assert starter.stdout is not None
    supervisor = psutil.Process(int(starter.stdout.readline()))
    until(supervisor.children)
    (child,) = supervisor.children()
    starter.send_signal(how)
    starter.wait()
    until(lambda: not supervisor.is_running() and not child.is_running())
