"""The state table, every reason, and the journal and log readers against any bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError, UserErrors
from core.jobs import journal, observe, reasons, records
from core.jobs.child import Reporter, error_record
from core.jobs.spec import Options, RunSpec, read_spec
from core.jobs.state import ACTIVE, FINAL, Observation, Reason, State, derive
from core.jobs.watcher import OutputWatcher
from core.paths import RunPaths

pytestmark = pytest.mark.fast


def seen(**changes: object) -> Observation:
    base = {
        "lock_held": False,
        "started": False,
        "child_started": False,
        "stop_requested": False,
        "exit": None,
        "marked_alive": False,
    }
    return Observation(**{**base, **changes})  # type: ignore[arg-type]


def _spec(options: Options | None = None) -> RunSpec:
    return RunSpec(kind="train", name="x", params={}, seq=1, options=options or Options())


@pytest.mark.parametrize(
    ("observation", "state", "reason"),
    [
        (seen(), State.CREATED, None),
        (seen(stop_requested=True), State.STOPPED, Reason.USER_STOP),
        (seen(lock_held=True), State.STARTING, None),
        (seen(lock_held=True, started=True), State.STARTING, None),
        (seen(lock_held=True, started=True, child_started=True), State.RUNNING, None),
        (
            seen(lock_held=True, started=True, child_started=True, stop_requested=True),
            State.STOPPING,
            Reason.USER_STOP,
        ),
        (seen(started=True, child_started=True), State.LOST, Reason.LOST),
        (seen(started=True, marked_alive=True), State.ORPHANED, Reason.LOST),
        (seen(marked_alive=True), State.ORPHANED, Reason.LOST),
        (seen(started=True, marked_alive=True, stop_requested=True), State.ORPHANED, Reason.LOST),
        (seen(started=True, stop_requested=True), State.LOST, Reason.LOST),
        (seen(exit={"state": "FAILED", "reason": "oom_gpu"}), State.FAILED, Reason.OOM_GPU),
        (
            seen(
                exit={"state": "SUCCEEDED", "reason": "completed"},
                lock_held=True,
                started=True,
                stop_requested=True,
            ),
            State.SUCCEEDED,
            Reason.COMPLETED,
        ),
    ],
)
def test_derive(observation: Observation, state: State, reason: Reason | None) -> None:
    assert derive(observation) == (state, reason)


@given(st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_derive_knows_every_observation(
    lock: bool, started: bool, child: bool, stop: bool, marked: bool
) -> None:
    state, _ = derive(Observation(lock, started, child, stop, None, marked))
    assert (state in ACTIVE) == lock
    assert state not in (State.SUCCEEDED, State.FAILED)  # only a record of the end says so
    assert not (state in FINAL and marked)


@pytest.mark.parametrize(
    ("code", "text", "reason"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried", Reason.OOM_GPU),
        (
            1,
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory",
            Reason.OOM_HOST,
        ),
        (1, "MemoryError", Reason.OOM_HOST),
        (-9, "Iter(train) [3/9]", Reason.OOM_HOST),
        (-11, "Fatal Python error: Segmentation fault", Reason.KILLED_SIGNAL),
        (-15, "", Reason.KILLED_SIGNAL),
        (1, "OSError: [Errno 28] No space left on device", Reason.DISK_FULL),
        (1, "ModuleNotFoundError: No module named 'x'", Reason.IMPORT_ERROR),
        (1, "RuntimeError: Found no NVIDIA driver on your system", Reason.NO_GPU),
        (1, "AssertionError: Torch not compiled with CUDA enabled", Reason.NO_GPU),
        (1, "huggingface_hub.errors.GatedRepoError: 401 Client Error.", Reason.IMPORT_ERROR),
        (1, "LocalEntryNotFoundError: outgoing traffic has been disabled", Reason.IMPORT_ERROR),
        (1, "RuntimeError: [Errno 98] EADDRINUSE Address already in use", Reason.BAD_CONFIG),
        (1, "KeyError: 'Foo is not in the xtuner::builder registry.'", Reason.BAD_CONFIG),
        (1, "json.decoder.JSONDecodeError: Expecting value", Reason.BAD_DATA),
        (
            1,
            "RuntimeError: Watchdog caught collective operation timeout (NCCL)",
            Reason.KILLED_SIGNAL,
        ),
        (0, "all good", Reason.INCOMPLETE),
    ],
)
def test_the_reason_of_an_ending(code: int, text: str, reason: Reason) -> None:
    table = reasons.table_of(_spec(), RunPaths(Path("gone")))
    fault = reasons.diagnose(table, text, returncode=code)
    assert fault.reason == reason
    shown = reasons.account(code, fault, None)
    assert shown["why"] and shown["fix"] and (not text or text in shown["what"])


def test_the_jobs_own_words_come_first() -> None:
    told = error_record(
        UserErrors([UserError("a is wrong", "so it is", "mend a", where="f:1"), UserError("b")])
    )
    fault = reasons.diagnose(reasons.COMMON, "", returncode=2, error=told)
    assert (fault.reason, fault.cause, fault.fixes) == (Reason.BAD_CONFIG, "", ())
    full = error_record(UserError("cannot write x", "No space left on device (9 bytes needed)"))
    disk = reasons.diagnose(reasons.COMMON, "", returncode=2, error=full)
    assert disk.reason == Reason.DISK_FULL
    error = UserError.from_dict(json.loads(json.dumps(reasons.account(2, fault, told))))
    assert isinstance(error, UserErrors) and "2 problems" in error.what
    assert str(error.problems[0]) == "f:1: a is wrong\n  why: so it is\n  fix: mend a"


def test_spec_round_trip_and_refusals(tmp_path: Path) -> None:
    run = RunPaths(tmp_path / "r")
    spec = RunSpec(
        kind="train",
        name="Kai",
        params={"lr": 1e-3, "x": [1, None, "é"]},
        seq=7,
        parent="p",
        options=Options(grace_seconds=3, pass_env=("HF_TOKEN",)),
    )
    spec.write(run)
    assert read_spec(run) == spec
    for text in ("{", "[]", "null", '{"schema": 0}', '{"schema": 1, "kind": "train"}'):
        run.spec.write_text(text)
        with pytest.raises(UserError):
            read_spec(run)
    with pytest.raises(UserError, match="gone"):
        read_spec(RunPaths(tmp_path / "none"))


@given(st.binary(max_size=400))
def test_no_bytes_can_break_the_readers(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.bin"
    path.write_bytes(raw)
    journal.tail(path)
    list(journal.read_journal(path))
    journal.read_tail_records(path)
    for line in journal.LogFollower(path).lines():
        records.parse_line(line, mmengine=True)
        shown = journal.clean(line)
        assert "\x1b" not in shown and "\r" not in shown


@given(
    st.lists(
        st.dictionaries(st.text(), st.none() | st.booleans() | st.floats() | st.text()), max_size=5
    )
)
def test_journal_round_trip(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    path = tmp_path_factory.mktemp("j") / "j.jsonl"
    writer = journal.Journal(path)
    for record in records:
        writer.append(record)
    read = list(journal.read_journal(path))
    assert len(read) == len(records) and writer.dropped == 0


@pytest.mark.parametrize(
    "line",
    [
        "11/24 19:40:31 - mmengine - INFO - Iter(train) [ 10/500]  lr: 1.0e-03  eta: 0:01:00  "
        "time: 0.5  data_time: 0.01  memory: 1500  loss: 2.3100  grad_norm: nan",
        '@@persona {"type": "metric", "step": 10, "max_steps": 500, "lr": 1e-3, "loss": 2.31, '
        '"s_per_step": 0.5, "memory_bytes": 1.5e9, "grad_norm": NaN}',
    ],
)
def test_metric_lines(line: str) -> None:
    record = records.parse_line(line, mmengine=True)
    assert record is not None and record.model_dump() == {
        "type": "metric",
        "step": 10,
        "max_steps": 500,
        "lr": 1e-3,
        "loss": 2.31,
        "s_per_step": 0.5,
        "memory_bytes": 1.5e9,
        "grad_norm": None,
        "nan": True,
    }


def test_mmengine_lines_are_left_alone_where_the_job_speaks_for_itself() -> None:
    line = "Iter(train) [ 10/500]  loss: 2.31"
    assert records.parse_line(line, mmengine=False) is None
    assert records.parse_line("@@persona [1]", mmengine=True) is None
    assert records.parse_line('@@persona {"type": 1}', mmengine=True) is None


def test_progress_gives_the_time_left(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    writer = journal.Journal(run.metrics)
    for t, stage, done in ((0, "load", 1), (10, "train", 0), (12, "train", 10), (14, "train", 20)):
        writer.append({"t": t, "type": "progress", "stage": stage, "done": done, "total": 100})
    progress = observe.progress_of(run, "train")
    assert (progress.stage, progress.done, progress.total) == ("train", 20, 100)
    assert progress.eta_seconds == pytest.approx(16)
    assert observe.progress_of(RunPaths(tmp_path / "none"), "train").total == 0


def test_stages_that_count_on_share_a_rate(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    writer = journal.Journal(run.metrics)
    for t, stage, done in ((0, "held_out", 0), (40, "held_out", 40), (41, "general", 41)):
        writer.append({"t": t, "type": "progress", "stage": stage, "done": done, "total": 100})
    assert observe.progress_of(run, "evaluate").eta_seconds == pytest.approx(59)


def test_elapsed_never_counts_another_boot() -> None:
    assert observe.elapsed({}, None) is None
    assert observe.elapsed({"boot_id": "other", "monotonic": 0.0}, None) is None
    future = {"boot_id": observe.processes.boot_id(), "monotonic": 1e12}
    assert observe.elapsed(future, None) == 0.0
    assert observe.elapsed({}, {"elapsed": 3.5}) == 3.5


def test_the_watcher_by_a_fake_clock(tmp_path: Path) -> None:
    now = [0.0]
    told: list[str] = []
    watcher = OutputWatcher(
        _spec(Options(stall_seconds=60, nan_steps=3)),
        journal.Journal(tmp_path / "m"),
        lambda event, **_: told.append(event),
        clock=lambda: now[0],
    )
    watcher.feed(["hello"])
    now[0] = 61.0
    watcher.feed([])
    watcher.feed([])
    assert told == ["stalled"]
    watcher.feed(["hello again"])
    assert told == ["stalled", "active"]
    nan = '@@persona {"type": "metric", "step": 1, "max_steps": 9, "loss": NaN}'
    good = nan.replace("NaN", "2.0")
    watcher.feed([nan, nan, good, nan, nan])
    assert watcher.give_up is None
    watcher.feed([nan])
    assert watcher.give_up is Reason.DIVERGED and told[-1] == "warning"


def test_progress_lines_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    report = Reporter()
    for done in range(1000):
        report("rows", done, 1000)
    report("rows", 1000, 1000)
    report("more", 0, 0)
    lines = capsys.readouterr().out.splitlines()
    assert 3 <= len(lines) < 20
    assert json.loads(lines[-2].removeprefix(records.PREFIX))["done"] == 1000
