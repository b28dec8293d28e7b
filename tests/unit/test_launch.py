"""Two processes under torchrun: whose words a failed run ends with, and that none is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from core import fsio
from core.errors import UserError
from core.jobs import api, reasons
from core.jobs.child import error_record
from core.jobs.spec import Options
from core.jobs.state import Reason, State
from core.paths import RunPaths
from core.training import faults, launch
from core.training.spec import TrainSpec
from tests.faults.support import leftovers, until

SPEC = TrainSpec(dataset="", gpus=2, batch_size=1)


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """torchrun listens for signals in this process."""
    kept = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def fail(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Exception:
    """What a run ends with whose second process fails like this."""
    run = RunPaths(folder)
    run.work.mkdir()
    monkeypatch.setattr(launch, "WORKER", ("-m", "tests.fakes.worker", how))
    with pytest.raises((UserError, launch.WorkerError)) as caught:
        launch.torchrun(SPEC, run)
    pids = [int((run.work / f"pid_{rank}").read_text()) for rank in (0, 1)]
    assert not any(psutil.pid_exists(pid) for pid in pids)
    return caught.value


@pytest.mark.parametrize(
    ("how", "words", "reason"),
    [
        ("raised", "rank 1 failed first: ValueError: row 17 broke rank 1", Reason.INCOMPLETE),
        ("killed", "rank 1 failed first: killed by SIGKILL", Reason.OOM_HOST),
        ("told", "the rows are unreadable", Reason.BAD_CONFIG),
    ],
)
def test_a_run_ends_with_the_words_of_the_process_that_failed_first(
    how: str,
    words: str,
    reason: Reason,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The other one complains of a lost connection, and torchrun of both; neither is told."""
    error = fail(how, tmp_path, monkeypatch)
    log = capfd.readouterr()
    record = error_record(error)
    table = faults.table(SPEC, resumable=False)
    fault = reasons.diagnose(table, log.out + log.err, returncode=1, error=record)
    told = reasons.account(1, fault, record)
    assert words in told["what"] and "ChildFailedError" not in str(told)
    assert fault.reason is reason


@pytest.mark.slow
def test_a_process_that_hears_nothing_does_not_keep_the_run_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchrun ends it after half a minute."""
    began = time.monotonic()
    assert "row 17" in str(fail("hang", tmp_path, monkeypatch))
    assert time.monotonic() - began < 200


@pytest.mark.parametrize("how", ["stop", "force", "kill the launcher"])
def test_stop_and_kill_leave_no_process(how: str, tmp_path: Path) -> None:
    """torchrun's workers are in sessions of their own, and these ignore SIGTERM."""
    folder = tmp_path / "run"
    line = launch.torchrun_argv(SPEC, RunPaths(folder))[:-3]
    run = api.create(
        "command",
        {},
        name="two",
        run_dir=folder,
        options=Options(grace_seconds=1.0),
        argv=[*line, "-m", "tests.fakes.worker", "stubborn", str(folder)],
    )
    run.work.mkdir()
    api.start(run)
    until(lambda: len(list(run.work.glob("pid_*"))) == 2, 120)
    assert len(leftovers(run)) == 3
    if how == "kill the launcher":
        os.kill(fsio.read_json(run.supervisor)["child_pid"], signal.SIGKILL)
    else:
        api.stop(run, force=how == "force")
    end = api.wait(run)
    assert end.state is (State.FAILED if how == "kill the launcher" else State.STOPPED)
    assert leftovers(run) == []


def failure(code: int, noticed: int) -> object:
    class Failure:
        exitcode = code
        timestamp = noticed

    return Failure()


def test_what_torchrun_ended_itself_is_never_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "2")
    launch.write_failure(tmp_path, RuntimeError("Connection closed by peer"))
    killed = {0: failure(-15, 5), 1: failure(-9, int(time.time()) + 30), 2: failure(1, 5)}
    assert "rank 1 failed first: killed by SIGKILL" in str(launch._first(tmp_path, killed))
    monkeypatch.setenv("RANK", "3")
    launch.write_failure(tmp_path, ValueError("x"))
    assert "rank 3 failed first: ValueError: x" in str(launch._first(tmp_path, killed))
