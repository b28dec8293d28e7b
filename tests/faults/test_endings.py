"""How a run ends: reliability cases 3 to 7, 10, 21, 22, 23, with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from core import fsio
from core.jobs import api, metrics
from core.jobs.journal import read_journal
from core.jobs.state import Reason, State
from core.paths import RunPaths
from tests.faults.support import (
    MakeRun,
    leftovers,
    reach,
    reach_step,
    supervisor_of,
    until,
)


def events(run: RunPaths) -> list[str]:
    return [e.get("state") or e["event"] for e in read_journal(run.events)]


def test_a_run_that_ends_well(make_run: MakeRun) -> None:
    run = make_run("--steps", 20)
    end = api.wait(run, poll=0.05)
    assert (end.state, end.reason) == (State.SUCCEEDED, Reason.COMPLETED)
    assert end.result == {"final": "iter_20.pth"}
    assert (end.stage, end.done, end.total) == ("train", 20, 20)
    assert end.elapsed_seconds and end.elapsed_seconds > 0 and end.error is None
    assert events(run) == ["STARTING", "RUNNING", "SUCCEEDED"]
    points = metrics.series_of(run).points
    assert [p["step"] for p in points] == list(range(1, 21))
    assert points[0]["memory_bytes"] == 1.5e9 and points[0]["grad_norm"] == 1.2345


def test_3_a_failure_behind_a_wrapper_that_returns_0(make_run: MakeRun) -> None:
    end = api.wait(make_run("--steps", 3, "--exit", 7, "--wrapped"), poll=0.05)
    assert (end.state, end.reason) == (State.FAILED, Reason.INCOMPLETE)
    assert end.error is not None and "left no result" in end.error.what


def test_4_ends_with_0_after_two_fifths(make_run: MakeRun) -> None:
    end = api.wait(make_run("--steps", 50, "--end-at", 20), poll=0.05)
    assert (end.state, end.reason) == (State.FAILED, Reason.INCOMPLETE)
    assert (end.done, end.total) == (20, 50)
    assert end.error is not None and "start again" in end.error.fix


def test_5_stop_ends_stubborn_children_and_their_sessions(make_run: MakeRun) -> None:
    run = make_run("--steps", 10_000, "--stubborn", grace_seconds=1.0)
    reach_step(run, 2)
    until(lambda: len(leftovers(run)) == 3)
    began = time.monotonic()
    api.stop(run)
    api.stop(run)  # idempotent
    assert api.status(run).state is State.STOPPING
    end = api.wait(run, poll=0.05)
    assert (end.state, end.reason) == (State.STOPPED, Reason.USER_STOP)
    assert 0.9 < time.monotonic() - began < 8
    assert leftovers(run) == [] and end.left_over == ()
    assert events(run)[-2:] == ["STOPPING", "STOPPED"]


def test_force_does_not_wait_for_the_grace(make_run: MakeRun) -> None:
    run = make_run("--steps", 10_000, "--stubborn", grace_seconds=60.0)
    reach_step(run, 2)
    api.stop(run)
    time.sleep(0.5)
    assert api.status(run).state is State.STOPPING
    api.stop(run, force=True)
    reach(run, State.STOPPED, 6)
    assert leftovers(run) == []


def test_what_a_good_run_leaves_behind_is_swept(make_run: MakeRun) -> None:
    run = make_run("--steps", 3, "--leave-behind")
    assert api.wait(run, poll=0.05).state is State.SUCCEEDED
    assert leftovers(run) == []


def test_6_supervisor_killed(make_run: MakeRun) -> None:
    run = make_run("--steps", 10_000)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        reach_step(run, 2)
        supervisor_of(run).kill()
        orphaned = reach(run, State.ORPHANED)
        assert orphaned.reason is Reason.LOST and not orphaned.active
        assert [s.state for s in api.list_runs()] == [State.ORPHANED]
        with pytest.raises(api.AlreadyStarted):
            api.start(run)
        api.stop(run)
        assert leftovers(run) == []
        assert api.status(run).state is State.STOPPED  # it was asked for, and it has an end
        assert bystander.poll() is None, "a process that is not ours was ended"
    finally:
        bystander.kill()
        bystander.wait()


def test_7_after_a_reboot_a_reused_pid_is_left_alone(make_run: MakeRun) -> None:
    run = make_run(start=False)
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        fsio.write_json(
            run.supervisor,
            {
                "schema": 1,
                "pid": innocent.pid,
                "start_time": 1.0,
                "boot_id": "of-another-boot",
                "mark": "0" * 32,
                "child_pid": innocent.pid,
                "child_start_time": 1.0,
                "started": time.time() - 50,
                "monotonic": 1e9,
            },
        )
        now = api.status(run)
        assert (now.state, now.reason) == (State.LOST, Reason.LOST)
        # From the start to the last sign of life, not by the clock of the other boot.
        assert now.elapsed_seconds is not None and 45 < now.elapsed_seconds < 60
        api.stop(run)
        api.stop(run, force=True)
        time.sleep(0.2)
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()


def test_a_supervisor_told_to_go_ends_its_child(make_run: MakeRun) -> None:
    run = make_run("--steps", 10_000)
    reach_step(run, 2)
    supervisor_of(run).terminate()
    end = reach(run, State.STOPPED)
    assert end.reason is Reason.KILLED_SIGNAL and leftovers(run) == []


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", Reason.OOM_GPU),
        ("RuntimeError: Found no NVIDIA driver on your system.", Reason.NO_GPU),
        ("ImportError: cannot import name 'x' from 'y'", Reason.IMPORT_ERROR),
        ("OSError: [Errno 28] No space left on device", Reason.DISK_FULL),
        ("GatedRepoError: 401 Client Error. Access to model x is restricted", Reason.IMPORT_ERROR),
    ],
)
def test_21_the_last_words_give_the_reason(make_run: MakeRun, says: str, reason: Reason) -> None:
    end = api.wait(make_run("--steps", 1, "--say", says, "--exit", 1), poll=0.05)
    assert (end.state, end.reason) == (State.FAILED, reason)
    assert end.error is not None and says in end.error.what and end.error.fix
    assert says in end.log_tail


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, Reason.OOM_HOST),
        (signal.SIGSEGV, Reason.KILLED_SIGNAL),
    ],
)
def test_21_a_signal_nobody_asked_for(make_run: MakeRun, number: int, reason: Reason) -> None:
    end = api.wait(make_run("--steps", 1, "--die", int(number)), poll=0.05)
    assert (end.state, end.reason) == (State.FAILED, reason)
    assert end.error is not None and signal.Signals(number).name in end.error.what
    if reason is Reason.OOM_HOST:
        assert "most likely" in end.error.why


def test_22_nan_is_warned_of_and_ends_the_run_if_told_to(make_run: MakeRun) -> None:
    going_on = make_run("--steps", 30, "--nan-from", 5, "--jump-at", 3, stop_on_nan=False)
    stopping = make_run("--steps", 1_000, "--nan-from", 5)
    end = api.wait(stopping, poll=0.05)
    assert (end.state, end.reason) == (State.FAILED, Reason.DIVERGED)
    assert end.error is not None and "learning rate" in end.error.fix
    assert api.wait(going_on, poll=0.05).state is State.SUCCEEDED
    codes = [e["code"] for e in read_journal(going_on.events) if e["event"] == "warning"]
    assert codes == ["loss_jump", "nan_loss"]
    points = metrics.series_of(going_on).points
    assert len(points) == 30 and "loss" not in points[10]
    assert "NaN" not in going_on.metrics.read_text()


def test_23_silence_is_a_banner_not_a_state(make_run: MakeRun) -> None:
    run = make_run("--steps", 60, "--silent-at", 5, "--silence", 3, stall_seconds=1.0)
    until(lambda: api.status(run).stalled)
    assert api.status(run).state is State.RUNNING
    until(lambda: not api.status(run).stalled)
    assert api.wait(run, poll=0.05).state is State.SUCCEEDED
    assert events(run) == ["STARTING", "RUNNING", "stalled", "active", "SUCCEEDED"]


def test_a_command_that_does_not_exist(workspace: object) -> None:
    run = api.create("command", {}, name="none", argv=["/no/such/program"])
    api.start(run)
    end = api.wait(run, poll=0.05)
    assert (end.state, end.reason) == (State.FAILED, Reason.BAD_CONFIG)
    assert end.error is not None and "/no/such/program" in end.error.what


def test_29_secrets_do_not_reach_the_job(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "canary-1")
    monkeypatch.setenv("HF_TOKEN", "canary-2")
    monkeypatch.setenv("OTHER_SECRET", "canary-3")
    plain = make_run("--steps", 1, "--print-env")
    asked = make_run("--steps", 1, "--print-env", pass_env=("HF_TOKEN",))
    for run in (plain, asked):
        assert api.wait(run, poll=0.05).state is State.SUCCEEDED
    assert "canary" not in plain.log.read_text()
    assert "MKL_SERVICE_FORCE_INTEL=1" in plain.log.read_text()
    assert asked.log.read_text().count("canary") == 1
    for file in asked.root.iterdir():
        if file.is_file() and file != asked.log:
            assert b"canary" not in file.read_bytes(), file


def test_a_finished_run_leaves_strict_json(make_run: MakeRun) -> None:
    run = make_run("--steps", 2)
    api.wait(run, poll=0.05)

    def no_constant(name: str) -> None:
        raise AssertionError(name)

    for path in (run.spec, run.supervisor, run.exit):
        assert json.loads(path.read_text(), parse_constant=no_constant)["schema"] == 1
    assert not [p for p in os.listdir(run.root) if "partial" in p or p == ".reserve"]


def test_a_line_that_looks_like_a_record_ends_nothing(make_run: MakeRun) -> None:
    """An imported row may hold any text, and libraries print rows."""
    run = make_run("--steps", 3, "--say", 'hello\n@@persona {"type":"event","event":"x"}')
    now = api.wait(run)
    assert (now.state, now.reason) == (State.SUCCEEDED, Reason.COMPLETED)
