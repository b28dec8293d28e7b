"""Starting, surviving the starter, waiting in turn: reliability cases 1, 2, 8, 9, 17."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core import paths
from core.errors import UserError
from core.jobs import api, kinds, locks, processes
from core.jobs.journal import read_journal
from core.jobs.state import State
from core.paths import RunPaths
from core.training.spec import TrainSpec
from tests.faults.support import MakeRun, leftovers, reach, reach_step, supervisor_of, until

#: Starts the run of argv[1] and then lives on, as a server does.
_STARTER = """
import sys, time
from pathlib import Path
from core.jobs import api
from core.paths import RunPaths
from core.training.spec import TrainSpec
api.start(RunPaths(Path(sys.argv[1])))
print("started", flush=True)
time.sleep(60)
"""


def start_elsewhere(run: RunPaths) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _STARTER, str(run.root)],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=paths.REPO,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_1_and_2_the_run_outlives_its_starter(make_run: MakeRun, how: signal.Signals) -> None:
    run = make_run("--steps", 10_000, start=False)
    starter = start_elsewhere(run)
    os.killpg(starter.pid, how)  # as a terminal does: the whole group
    starter.wait(timeout=10)
    before = api.status(run).done
    until(lambda: api.status(run).done > before + 3)
    assert api.status(run).state is State.RUNNING
    api.stop(run)
    reach(run, State.STOPPED)
    assert leftovers(run) == []


def test_8_two_starts_of_one_run(make_run: MakeRun) -> None:
    run = make_run("--steps", 10_000, start=False)
    outcomes: list[str] = []

    def press() -> None:
        try:
            api.start(run)
            outcomes.append("started")
        except api.AlreadyStarted as error:
            outcomes.append(error.run)

    presses = [threading.Thread(target=press) for _ in range(4)]
    for thread in presses:
        thread.start()
    for thread in presses:
        thread.join()
    assert sorted(outcomes) == sorted(["started", *[run.root.name] * 3])
    until(lambda: leftovers(run))
    assert len(leftovers(run)) == 1
    assert [e.get("state") for e in read_journal(run.events)] == ["STARTING", "RUNNING"]


def test_8_two_windows_press_start_for_the_same_settings(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real kind whose module does not come up quickly would do too; this one waits its turn.
    chat = locks.DeviceLock("chat")
    assert chat.acquire()
    outcomes: list[str] = []

    def launch(steps: int) -> RunPaths:
        return api.launch(TrainSpec(dataset="d", steps=steps), name="kai", checked=True)

    def press(steps: int) -> None:
        try:
            outcomes.append("new " + launch(steps).root.name)
        except api.AlreadyStarted as error:
            outcomes.append("old " + error.run)

    presses = [threading.Thread(target=press, args=(5,)) for _ in range(3)]
    for thread in presses:
        thread.start()
    for thread in presses:
        thread.join()
    press(6)  # other settings: another run, which queues
    new = {o.removeprefix("new ") for o in outcomes if o.startswith("new")}
    old = {o.removeprefix("old ") for o in outcomes if o.startswith("old")}
    assert len(new) == 2 and len(old) == 1 and old < new
    runs = [RunPaths(s.root) for s in api.list_runs()]
    assert {r.root.name for r in runs} == new
    for run in runs:
        now = api.status(run)
        assert (now.state, now.stage, now.waiting_for) == (State.STARTING, "queued", "chat")
        api.stop(run)
    for run in runs:
        assert api.wait(run, poll=0.05).state is State.STOPPED  # while it was still waiting
    chat.release()


def test_9_runs_wait_for_the_device_in_the_order_of_their_making(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert locks.device_holder() is None
    chat = locks.DeviceLock("chat")
    assert chat.acquire()
    runs = [make_run("--steps", 40, start=False) for _ in range(3)]
    for run in reversed(runs):
        api.start(run)
    until(lambda: all(api.status(r).stage == "queued" for r in runs))
    holder = locks.device_holder()
    assert holder is not None and holder.what == "chat" and holder.pid == os.getpid()
    chat.release()
    reach(runs[0], State.RUNNING)
    holder = locks.device_holder()
    assert holder is not None and holder.run == runs[0].root.name
    assert runs[0].root.name in api.status(runs[1]).waiting_for
    ends = [api.wait(run, poll=0.05) for run in runs]
    assert [e.state for e in ends] == [State.SUCCEEDED] * 3
    began = [
        next(e["time"] for e in read_journal(r.events) if e.get("state") == "RUNNING") for r in runs
    ]
    over = [e.ended for e in ends]
    assert began == sorted(began)
    assert all(over[i] <= began[i + 1] + 0.5 for i in range(2))
    assert locks.device_holder() is None


def test_9_the_device_is_free_again_when_its_holder_is_killed(make_run: MakeRun) -> None:
    first, second = make_run("--steps", 10_000), make_run("--steps", 3, start=False)
    reach_step(first, 2)
    api.start(second)
    until(lambda: api.status(second).stage == "queued")
    supervisor_of(first).kill()
    reach(first, State.ORPHANED)
    assert api.status(second).stage == "queued"  # the orphan goes on using the device
    api.stop(first, force=True)
    assert api.wait(second, poll=0.05).state is State.SUCCEEDED


def test_a_job_cannot_keep_its_supervisors_locks(make_run: MakeRun) -> None:
    run = make_run("--steps", 10_000)
    reach_step(run, 2)
    child = processes.processes_of(api.read_spec(run).mark)[0]
    held = {Path(f.path).name for f in child.open_files()}
    # The device's lock it has to have: it must not lose the device with its supervisor.
    assert held <= {"log.txt", ".device.lock"}


def test_a_run_stopped_before_its_start_stays_so(make_run: MakeRun) -> None:
    run = make_run(start=False)
    api.stop(run)
    assert api.status(run).state is State.STOPPED
    with pytest.raises(api.AlreadyStarted):
        api.start(run)
    assert not run.supervisor.exists()


@pytest.mark.parametrize("name", ["../x", "/etc", "con", "x" * 300, "a\0b", "%2e%2e", "", "日本"])
def test_17_names_cannot_leave_the_folder(workspace: Path, name: str) -> None:
    run = api.create("command", {}, name=name, argv=["true"])
    assert run.root.parent == workspace / "runs"
    assert set(run.root.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(run.root.name) <= 80
    assert api.status(run).name == name


@pytest.mark.parametrize("name", ["../x", "/etc", "..", ".", "a\0b", "", "%2e%2e", "no-such"])
def test_17_ids_that_are_not_runs(workspace: Path, name: str) -> None:
    with pytest.raises(UserError):
        api.open_run(name)


def test_17_a_link_out_of_the_folder_is_not_a_run(workspace: Path, tmp_path: Path) -> None:
    outside = api.create("command", {}, name="x", run_dir=tmp_path / "outside", argv=["true"])
    (workspace / "runs" / "link").symlink_to(outside.root)
    with pytest.raises(UserError, match="outside"):
        api.open_run("link")
    assert api.list_runs() == []


def test_only_commands_have_an_argv(workspace: Path) -> None:
    for kind, argv in (("train", ["rm"]), ("command", [])):
        with pytest.raises(UserError, match="argv"):
            api.create(kind, {}, name="x", argv=argv)
    with pytest.raises(UserError, match="no job kind"):
        api.create("shell", {}, name="x")
    assert kinds.KINDS["train"].needs_device


def test_a_job_that_is_not_there_is_an_import_error(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The child is a new process, so the fault is made there: a broken module on its path.
    broken = workspace / "broken" / "core_fault"
    broken.mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", str(workspace / "broken"))
    run = api.create(
        "command", {}, name="x", argv=[sys.executable, "-c", "import core_fault.missing"]
    )
    api.start(run)
    end = api.wait(run, poll=0.05)
    assert (end.state, end.reason) == (State.FAILED, "import_error")
    assert end.error is not None and "core_fault.missing" in end.error.what


def test_orders_by_sequence_when_the_clock_goes_back(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = api.create("command", {}, name="first", argv=["true"])
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200)
    monkeypatch.setattr(time, "strftime", lambda *_: "20200101-000000")
    second = api.create("command", {}, name="second", argv=["true"])
    assert [s.id for s in api.list_runs()] == [second.root.name, first.root.name]
