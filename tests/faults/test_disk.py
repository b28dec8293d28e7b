"""Full disks, vanished folders, broken files, enormous logs: cases 10, 11, 24, 25, 26, 30."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import fsio, paths
from core.errors import UserError
from core.jobs import api, journal, metrics, reasons
from core.jobs.journal import read_journal
from core.jobs.state import Reason, State
from core.paths import RunPaths
from tests.faults.support import MakeRun, leftovers, reach_step, supervisor_of, until


def limit_files(pid: int, size: int) -> None:
    """From now on no file of this process may grow beyond ``size`` bytes, as on a full disk."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def test_11_a_full_disk_costs_metrics_but_not_the_run(make_run: MakeRun) -> None:
    run = make_run("--steps", 100)
    reach_step(run, 3)
    limit_files(supervisor_of(run).pid, 2048)
    end = api.wait(run, poll=0.05)
    assert end.state is State.SUCCEEDED
    assert run.metrics.stat().st_size <= max(2048, 400 * 30)
    assert metrics.series_of(run).points[0]["step"] == 1


def test_11_the_end_is_written_once_there_is_room(make_run: MakeRun) -> None:
    run = make_run("--steps", 10_000)
    reach_step(run, 3)
    supervisor = supervisor_of(run)
    limit_files(supervisor.pid, 10)
    api.stop(run)
    until(lambda: leftovers(run) == [])
    assert not run.exit.exists() and api.status(run).state is State.STOPPING
    limit_files(supervisor.pid, 1 << 20)
    assert api.wait(run, poll=0.05).state is State.STOPPED
    assert not list(run.root.glob(".*.partial"))


def test_11_a_spec_that_does_not_fit_says_how_much_it_needs(workspace: Path) -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
from core.errors import UserError
from core.jobs import api
try:
    api.create("train", {"x": "y" * 1000}, name="big")
except UserError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=paths.REPO
    ).stdout
    assert "spec.json" in told and "bytes needed" in told and "fix:" in told
    assert api.list_runs() == []
    assert not list(workspace.rglob("*.partial"))


def test_10_lines_that_are_no_records(workspace: Path) -> None:
    run = RunPaths(workspace / "r")
    run.root.mkdir()
    good = [{"type": "metric", "step": i, "max_steps": 9, "loss": 1.0} for i in range(1, 4)]
    rows = [json.dumps(g).encode() for g in good]
    run.metrics.write_bytes(
        b"\n".join(
            [
                rows[0],
                b"",
                b"\0\0\0",
                b"\xff\xfe{",
                b"[1]",
                b"{",
                b"[" * 100_000,
                rows[1],
                rows[2][:20],
            ]
        )
    )
    reader = metrics.MetricsReader(run.metrics)
    series = reader.refresh()
    assert [p["step"] for p in series.points] == [1, 2] and series.bad_lines == 5
    with run.metrics.open("ab") as file:  # the torn line is completed
        file.write(rows[2][20:] + b"\n")
    assert [p["step"] for p in reader.refresh().points] == [1, 2, 3]


def test_10_truncated_replaced_and_regrown(workspace: Path) -> None:
    path = workspace / "metrics.jsonl"

    def rows(first: int, last: int, loss: float = 1.0) -> str:
        return "".join(
            json.dumps({"type": "metric", "step": i, "max_steps": 99, "loss": loss}) + "\n"
            for i in range(first, last + 1)
        )

    path.write_text(rows(1, 10))
    reader = metrics.MetricsReader(path)
    assert len(reader.refresh().points) == 10
    path.write_text(rows(1, 3))  # shorter, same inode
    assert len(reader.refresh().points) == 3
    path.write_text(rows(1, 20, loss=2.0))  # regrown beyond where we were
    assert [p["loss"] for p in reader.refresh().points] == [2.0] * 20
    other = workspace / "other"
    other.write_text(rows(1, 30))
    os.replace(other, path)
    assert len(reader.refresh().points) == 30
    path.unlink()
    assert reader.refresh().points == []


def test_a_long_run_is_sampled_and_bounded(workspace: Path) -> None:
    path = workspace / "metrics.jsonl"
    with path.open("w") as file:
        for i in range(1, 30_001):
            file.write(
                json.dumps(
                    {
                        "type": "metric",
                        "step": i,
                        "max_steps": 30_000,
                        "loss": 1 / i,
                        "lr": 1e-3,
                        "grad_norm": 1.0,
                    }
                )
                + "\n"
            )
    series = metrics.MetricsReader(path).refresh()
    steps = [p["step"] for p in series.points]
    assert series.sampled and len(steps) <= metrics.MAX_POINTS and steps == sorted(set(steps))
    assert steps[0] == 1 and steps[-1] >= 29_990 and series.last["step"] == 30_000
    assert max(b - a for a, b in itertools.pairwise(steps)) < 60
    growing = metrics.MetricsReader(workspace / "other")
    with (workspace / "other").open("w") as file:
        for i in range(1, 9_001):
            file.write(f'{{"type": "metric", "step": {i}, "max_steps": 1, "loss": 1.0}}\n')
            if i % 500 == 0:
                file.flush()
                assert len(growing.refresh().points) <= metrics.MAX_POINTS
    assert growing.series.stride == 8 and growing.series.last["step"] == 9_000


def test_25_a_huge_log_of_carriage_returns(workspace: Path) -> None:
    log = workspace / "log.txt"
    with log.open("wb") as file:
        file.truncate(2 << 30)  # sparse
        file.seek(0, os.SEEK_END)
        file.write(
            b"\n\x1b[32mfirst\x1b[0m\n" + b"\r 10%|#   |" * 100 + b"\r\x1b[1m 99%|####|\x1b[0m"
        )
    began = time.perf_counter()
    text = journal.tail(log)
    assert time.perf_counter() - began < 0.05
    assert text == "first\n 99%|####|"
    follower = journal.LogFollower(log)
    assert list(follower.lines()) != [] or follower.size == 1 << 20
    assert len(follower._rest) <= journal.MAX_LINE


def test_25_a_progress_bar_without_line_ends_is_followed(workspace: Path) -> None:
    log = workspace / "log.txt"
    follower = journal.LogFollower(log)
    assert list(follower.lines()) == []
    log.write_bytes(b"a\rb\r\nc")
    assert list(follower.lines()) == ["a", "b"]
    with log.open("ab") as file:
        file.write(b"d\n\xff\n")
    assert list(follower.lines()) == ["cd", "\ufffd"]
    log.write_bytes(b"x\n")
    assert list(follower.lines()) == ["x"]


def test_26_a_run_folder_that_vanishes(make_run: MakeRun) -> None:
    run, other = make_run("--steps", 10_000), make_run("--steps", 3, start=False)
    reach_step(run, 2)
    supervisor = supervisor_of(run)
    mark = api.read_spec(run).mark
    shutil.rmtree(run.root)
    with pytest.raises(UserError, match="gone"):
        api.status(run)
    with pytest.raises(UserError, match="gone"):
        api.stop(run)
    assert [s.id for s in api.list_runs()] == [other.root.name]
    until(lambda: not supervisor.is_running() or supervisor.status() == "zombie")
    assert api.processes.processes_of(mark) == []
    assert not run.root.exists()
    api.start(other)
    assert api.wait(other, poll=0.05).state is State.SUCCEEDED


def test_26_a_folder_that_cannot_be_written(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("--steps", 10_000)
    reach_step(run, 2)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patched:  # chmod does not stop root, who may run this
        patched.setattr(fsio.tempfile, "mkstemp", refuse)
        with pytest.raises(UserError, match="Permission denied"):
            api.stop(run)
    assert api.status(run).state is State.RUNNING


def test_24_the_clock_set_back(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("--steps", 10_000)
    reach_step(run, 5)
    until(lambda: api.status(run).eta_seconds is not None)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 7200)
    now = api.status(run)
    assert now.elapsed_seconds is not None and 0 < now.elapsed_seconds < 60
    assert now.eta_seconds is not None and now.eta_seconds > 0
    seqs = [e["seq"] for e in read_journal(run.events)]
    assert seqs == list(range(1, len(seqs) + 1))


def test_30_a_spec_of_another_version_does_not_break_the_list(
    make_run: MakeRun, workspace: Path
) -> None:
    good = make_run(start=False)
    newer = {**json.loads(good.spec.read_text()), "schema": 99}  # whatever its fields may mean
    texts = {"old": '{"schema": 0}', "torn": "{", "list": "[]", "newer": json.dumps(newer)}
    for name, text in texts.items():
        (workspace / "runs" / name).mkdir()
        (workspace / "runs" / name / "spec.json").write_text(text)
    (workspace / "runs" / "no-run").mkdir()
    listed = {s.id: s.state for s in api.list_runs()}
    assert listed == {
        good.root.name: State.CREATED,
        "old": State.LOST,
        "torn": State.LOST,
        "list": State.LOST,
        "newer": State.LOST,
    }
    for name in texts:
        with pytest.raises(UserError):
            api.status(RunPaths(workspace / "runs" / name))


def test_delete_refuses_what_is_alive(make_run: MakeRun) -> None:
    run = make_run("--steps", 10_000)
    reach_step(run, 2)
    with pytest.raises(UserError, match="stop it first"):
        api.delete(run)
    api.stop(run)
    api.wait(run, poll=0.05)
    api.delete(run)
    assert api.list_runs() == [] and not run.root.exists()


#: A workspace on a disk of 4 MB, and a job that saves a checkpoint of 8 MB there.
_FULL = """
import os, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", sys.argv[1]], check=True)
os.environ["PERSONA_HOME"] = sys.argv[1]
from core.jobs import api
from core.paths import RunPaths, runs_dir
runs_dir().mkdir(parents=True)
folder = runs_dir() / "full"
save = (
    "import os, sys, time, torch\\n"
    "path = os.path.join(sys.argv[1], 'iter_2.pth')\\n"
    "try: torch.save({'a': torch.zeros(2_000_000)}, path)\\n"
    "finally: time.sleep(1); os.remove(path)\\n"
)
argv = [sys.executable, "-c", save, str(folder)]
run = api.create("command", {}, name="full", run_dir=folder, argv=argv)
api.start(run, timeout=60)
end = api.wait(run)
print("END", end.state, end.reason, end.error)
"""


def test_11_a_full_disk_in_training_is_called_so(tmp_path: Path) -> None:
    """On a real disk, full for a moment: what is torn is removed, and there is room again."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("a disk of its own can be mounted by root only")
    done = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", _FULL, str(place)],
        cwd=paths.REPO, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    end = next((x for x in done.stdout.splitlines() if x.startswith("END")), done.stderr)
    assert end.startswith("END FAILED disk_full"), end
    assert "free disk space" in done.stdout


def test_11_what_torch_says_of_a_full_disk(tmp_path: Path) -> None:
    """It names neither the disk nor the error number."""
    code = (
        "import resource, sys, torch\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, resource.RLIM_INFINITY))\n"
        "torch.save({'a': torch.zeros(2_000_000)}, sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.pth")], capture_output=True, text=True
    )
    assert "No space left" not in done.stderr
    fault = reasons.diagnose(reasons.COMMON, done.stderr, returncode=done.returncode)
    assert fault.reason is Reason.DISK_FULL, done.stderr
