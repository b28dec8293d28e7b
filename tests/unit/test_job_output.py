"""What a job prints is untrusted: only records with this run's secret count, and none can harm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import UserError
from core.jobs import journal, observe, reasons, records
from core.jobs.metrics import MetricsReader
from core.jobs.spec import RunSpec
from core.jobs.watcher import OutputWatcher
from core.paths import RunPaths

pytestmark = pytest.mark.fast

SECRET = "5ecret"


def watched(tmp_path: Path, *lines: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(metrics, events) of a run that printed these lines."""
    events = journal.Journal(tmp_path / "events.jsonl")
    watcher = OutputWatcher(
        RunSpec(kind="train", name="x", params={}, seq=1),
        journal.Journal(tmp_path / "metrics.jsonl"),
        lambda event, **fields: events.append({"event": event, **fields}),
        SECRET,
    )
    watcher.feed(lines)
    return (
        list(journal.read_journal(tmp_path / "metrics.jsonl")),
        list(journal.read_journal(tmp_path / "events.jsonl")),
    )


#: Each of these ended the supervision of a run, or was believed.
ATTACKS = [
    {"type": "event", "event": "x"},
    {"type": "event", "t": 1, "time": 2},
    {"type": "event", "self": 1},
    {"type": "sample", "event": "x"},
    {"type": "sample", "step": 1, "prompt": "\ud800", "reply": "\udfff"},
    {"type": "metric", "step": 1, "max_steps": 2, "loss": 10**400},
    {"type": "metric", "step": 1, "max_steps": 2, "loss": [1]},
    {"type": "metric", "step": 1, "max_steps": 2, "loss": "nan"},
    {"type": "metric", "step": 10**40, "max_steps": 2, "loss": 1.0},
    {"type": "metric", "step": "a", "max_steps": None, "loss": 1.0},
    {"type": "metric", "step": 1, "max_steps": 2, "loss": 1.0, "deep": {"a": [[[]]]}},
    {"type": "metric", "step": 1, "max_steps": 2, "\ud800": 1.0},
    {"type": "progress", "stage": "\ud800", "done": 1, "total": 2},
    {"type": "progress", "stage": "x" * 10**6, "done": -1, "total": 2},
    {"type": "progress", "stage": {"a": 1}, "done": 1, "total": 2},
    {"type": "seq", "seq": "x"},
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: str(a)[:50])
def test_a_record_that_is_none_does_no_harm(attack: dict[str, Any], tmp_path: Path) -> None:
    good = {"type": "metric", "step": 1, "max_steps": 2, "loss": 1.0}
    line = f"{records.PREFIX}{SECRET} " + json.dumps(attack)
    metrics, _ = watched(tmp_path, line, f"{records.PREFIX}{SECRET} {json.dumps(good)}")
    assert metrics[-1].items() >= good.items()
    MetricsReader(tmp_path / "metrics.jsonl").refresh()
    observe.progress_of(RunPaths(tmp_path), "train")


def test_a_row_of_a_dataset_is_no_record(tmp_path: Path) -> None:
    """The prefix is public and stands in this file; the secret is the run's own."""
    record = json.dumps({"type": "metric", "step": 1, "max_steps": 1, "loss": 99.0})
    lines = [f"{records.PREFIX}{record}", f"{records.PREFIX}guess {record}", f"x {SECRET} {record}"]
    assert watched(tmp_path, *lines) == ([], [])


def test_a_step_that_is_no_number_is_no_metric(tmp_path: Path) -> None:
    """metrics.jsonl of a folder from others; found by fuzzing."""
    path = tmp_path / "metrics.jsonl"
    rows = [{"type": "metric", "step": step, "loss": 1.0} for step in (False, 1, "2", None, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [p["step"] for p in MetricsReader(path).refresh().points] == [1, 3]


def test_deep_json_is_an_ordinary_line(tmp_path: Path) -> None:
    line = f"{records.PREFIX}{SECRET} " + '{"type":' + "[" * 50_000
    assert watched(tmp_path, line) == ([], [])


_json = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(st.characters(), max_size=9)
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=6,
)
_FIELDS = ["type", "step", "max_steps", "loss", "stage", "done", "total", "event", "t", "seq"]
_TYPES = st.sampled_from(["metric", "progress", "sample", "event"])


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_FIELDS), _json), _TYPES, st.text(max_size=40))
def test_any_output_is_survived(
    tmp_path_factory: pytest.TempPathFactory, record: dict[str, Any], kind: str, text: str
) -> None:
    folder = tmp_path_factory.mktemp("w")
    prefix = f"{records.PREFIX}{SECRET} "
    lines = [prefix + json.dumps({**record, "type": kind}), prefix + text, text]
    _, events = watched(folder, *lines)
    assert [e for e in events if e.get("code") == "bad_record"] == []
    MetricsReader(folder / "metrics.jsonl").refresh()
    observe.progress_of(RunPaths(folder), "train")


@settings(max_examples=200, deadline=None)
@given(_json, st.integers(-64, 3))
def test_any_error_file_is_survived(error: Any, status: int) -> None:
    """error.json is the job's as well."""
    told = {"kind": "user", "what": error, "problems": error, "reason": error}
    for record in (told, {"kind": error}, {"kind": "crash", "what": error}):
        fault = reasons.diagnose(reasons.COMMON, "log", returncode=status, error=record)
        assert isinstance(UserError.from_dict(reasons.account(status, fault, record)), UserError)
