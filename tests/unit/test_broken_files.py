"""One bad file never takes a list down: the entry says that it is broken, and can be deleted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import fsio, paths
from core.chat import prompts, transcripts
from core.chat.columns import Column, discover
from core.chat.dialogue import MessageDraft, Reply, Turn
from core.chat.endpoint import _CHARS_A_TOKEN, _EndpointReply
from core.data import store
from core.errors import UserError, redacted
from core.inference.events import Ended, Event, Grown
from core.inference.settings import GenerationSettings
from core.jobs import api, processes
from core.jobs.child import error_record
from core.jobs.metrics import MetricsReader
from core.jobs.observe import progress_of
from core.jobs.state import Progress, State
from core.paths import RunPaths
from core.probes import suites

pytestmark = pytest.mark.fast

DEEP = "[" * 100_000
GOOD_EXIT = {"schema": 1, "state": "SUCCEEDED", "reason": "completed", "elapsed": 1.0}


def a_run(name: str = "x") -> RunPaths:
    return api.create("train", {"model": "bundled"}, name=name)


EXITS: list[Any] = [
    {**GOOD_EXIT, "reason": "from_the_future"},
    {**GOOD_EXIT, "state": "RUNNING"},
    {**GOOD_EXIT, "state": ["SUCCEEDED"]},
    {**GOOD_EXIT, "elapsed": "long"},
    {**GOOD_EXIT, "error": "text"},
    {**GOOD_EXIT, "left_over": "text"},
    [],
    "text",
    None,
    DEEP,
    "\x00\xff",
]
SPECS: list[Any] = [
    {"seq": "x"},
    {"seq": None},
    {"name": 5},
    {"options": 3},
    {"params": []},
    {"created": "yesterday"},
    DEEP,
    "[]",
    "",
]


@pytest.mark.parametrize("content", EXITS, ids=lambda c: str(c)[:40])
def test_an_odd_exit_is_a_lost_run(content: Any) -> None:
    run, good = a_run("bad"), a_run("good")
    text = content if isinstance(content, str) else json.dumps(content)
    run.exit.write_text(text)
    listed = {s.root: s for s in api.list_runs()}
    assert listed[run.root].state is State.LOST
    assert listed[good.root].state is State.CREATED
    assert api.status(run).state is State.LOST
    api.delete(run)
    assert not run.root.exists()


@pytest.mark.parametrize("change", SPECS, ids=lambda c: str(c)[:40])
def test_an_odd_spec_is_listed_and_deleted(change: Any) -> None:
    run, good = a_run("bad"), a_run("good")
    spec = json.loads(run.spec.read_text())
    run.spec.write_text(change if isinstance(change, str) else json.dumps({**spec, **change}))
    assert {s.root for s in api.list_runs()} == {run.root, good.root}
    discover()
    api.delete(run)
    assert not run.root.exists()


@pytest.mark.parametrize("record", [[], {"elapsed": 1}, {"started": "x", "boot_id": 1}, DEEP])
def test_an_odd_supervisor_record(record: Any) -> None:
    run = a_run()
    run.supervisor.write_text(record if isinstance(record, str) else json.dumps(record))
    api.status(run)
    api.list_runs()


def test_a_lost_run_stops_counting_time() -> None:
    run = a_run()
    record = {"started": 1000.0, "boot_id": "x", "monotonic": 1.0, "pid": 1}
    run.supervisor.write_text(json.dumps(record))
    for path in (run.supervisor, run.log, run.events):
        path.touch()
        os.utime(path, (1060, 1060))
    assert api.status(run).state is State.LOST
    assert api.status(run).elapsed_seconds == 60


@pytest.mark.parametrize("name", ["x" * 300, "\ud800", "a\0b", "../x", ".", "", "é" * 200])
def test_odd_ids_are_user_errors(name: str) -> None:
    for ask in (api.open_run, transcripts.read, store.delete):
        with pytest.raises(UserError):
            ask(name)


@pytest.mark.parametrize("name", ["x" * 300, "é" * 200, "a\0b", "\ud800", "../x"])
def test_no_path_is_made_of_what_cannot_be_a_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        fsio.safe_join(tmp_path, name)


def test_broken_conversations_are_listed_and_deleted() -> None:
    column = Column("a", "base", "Base", "bundled")
    good = transcripts.create([column])
    transcripts.set_draft(good, MessageDraft("a question that waits"))  # empty ones are not listed
    bad = []
    for index, row in enumerate(
        [
            {"type": "turn", "prompt": "x", "settings": {}, "replies": {"a": {"text": [1]}}},
            {"type": "turn"},
            {"type": "vote", "turn": 9, "vote": "a"},
            {"type": "back", "count": "x"},
            {"type": "chat", "columns": 3},
        ]
    ):
        chat = transcripts.create([column])
        with transcripts.path_of(chat.id).open("a") as file:
            file.write(json.dumps(row) + "\n")
        os.rename(transcripts.path_of(chat.id), transcripts.path_of(f"bad-{index}"))
        bad.append(f"bad-{index}")
    (paths.chats_dir() / "dangling.jsonl").symlink_to("/nowhere")
    (paths.chats_dir() / f"{'Not ours'}.jsonl").write_text("x")
    (paths.chats_dir() / "deep.jsonl").write_text(DEEP + "\n")
    listed = {row.id for row in transcripts.list_chats()}
    assert listed == {good.id, *bad, "dangling", "deep"}
    for name in [*bad, "dangling", "deep"]:
        transcripts.delete(name)
    assert [row.id for row in transcripts.list_chats()] == [good.id]


def test_a_reply_with_a_key_of_another_version_is_read() -> None:
    column = Column("a", "base", "Base", "bundled")
    chat = transcripts.create([column])
    transcripts.add_turn(chat, Turn("x", GenerationSettings(), {"a": Reply("yes")}))
    file = transcripts.path_of(chat.id)
    file.write_text(file.read_text().replace('"text": "yes"', '"text": "yes", "mood": "good"'))
    assert transcripts.read(chat.id).turns[0].replies["a"].text == "yes"


def test_foreign_folders_and_adapters_do_not_stop_discovery(workspace: Path) -> None:
    runs = workspace / "runs"
    for index, text in enumerate(["[]", "null", DEEP, "{", '{"base_model_name_or_path": [1]}']):
        folder = runs / f"foreign-{index}" / "adapter"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text(text)
    (runs / "dangling").symlink_to("/nowhere")
    assert len(discover()) >= 2
    assert api.list_runs() == []


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
_FIELDS = ["schema", "rows", "kinds", "locales", "created", "parent", "note"]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.dictionaries(st.sampled_from(_FIELDS), _json))
def test_any_dataset_json_is_a_line_of_the_list(workspace: Path, manifest: dict[str, Any]) -> None:
    folder = paths.datasets_dir() / "odd"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"schema": 1, **manifest}))
    assert [s.name for s in store.list_datasets()] == ["odd"]


# -- the disk ----------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["rename", "unlink"])
def test_what_the_disk_refuses_is_a_user_error(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run()
    chat = transcripts.create([Column("a", "base", "Base", "bundled")])
    (paths.datasets_dir() / "d").mkdir(parents=True)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, broken, refuse)
    monkeypatch.setattr(os, broken, refuse)
    asked = [lambda: transcripts.delete(chat.id)]
    if broken == "rename":
        asked = [lambda: api.delete(run), lambda: store.delete("d")]
    for ask in asked:
        with pytest.raises(UserError, match="Read-only"):
            ask()


# -- secrets and size --------------------------------------------------------------------------


def test_a_key_that_a_server_echoes_is_written_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary-123456")
    monkeypatch.setenv("HF_TOKEN", "short")
    told = "401: Incorrect API key provided: sk-canary-123456, short"
    for error in (UserError("x", told, told), ValueError(told)):
        assert "sk-canary" not in json.dumps(error_record(error))
    assert redacted(told).endswith("***, short")


def test_a_server_that_ignores_the_limit_is_cut() -> None:
    events: list[Event] = []
    column = Column("a", "endpoint", "S", "m", base_url="http://127.0.0.1:1")
    reply = _EndpointReply(column, [], GenerationSettings(max_new_tokens=4), events.append)
    with pytest.raises(UserError, match="does not keep to 4 tokens"):
        for _ in range(1000):
            reply._add("x" * 30_000)
    assert len(reply.text) == 4 * _CHARS_A_TOKEN
    assert (
        sum(len(event.text) for event in events if isinstance(event, Grown)) == 4 * _CHARS_A_TOKEN
    )


@pytest.mark.parametrize(
    ("reason", "usage", "text"),
    [
        (["x"], None, "a"), ({"a": 1}, {"completion_tokens": "x", "prompt_tokens": [1]}, "a"),
        ("stop", {"completion_tokens": -1}, "a"), ("stop", None, "\ud800a"), (5, 7, "a"),
    ],
)  # fmt: skip
def test_a_server_of_other_types_ends_and_is_text(reason: Any, usage: Any, text: str) -> None:
    """The openai client checks nothing: a list as the reason left the column waiting for ever."""
    events: list[Event] = []
    column = Column("a", "endpoint", "S", "m", base_url="http://127.0.0.1:1")
    reply = _EndpointReply(column, [], GenerationSettings(), events.append)
    delta = SimpleNamespace(content=text)
    choice = SimpleNamespace(finish_reason=reason, delta=delta)
    reply._take(SimpleNamespace(usage=usage, choices=[choice]))
    reply._end()
    end = events[-1]
    assert isinstance(end, Ended) and end.finish_reason == "stop" and end.prompt_tokens is None
    assert end.text.encode() in (b"a", b"\xef\xbf\xbda") and isinstance(end.pace.tokens, int)


def test_json_that_cannot_be_read_is_a_user_error(tmp_path: Path) -> None:
    for index, data in enumerate([DEEP.encode(), b"\xff", b"{", b"9" * 5000]):
        path = tmp_path / f"{index}.json"
        path.write_bytes(data)
        with pytest.raises(UserError):
            fsio.read_json(path)
    with pytest.raises(UserError):
        fsio.read_json(tmp_path)


def test_a_reused_pid_is_another_process() -> None:
    me = psutil.Process()
    assert processes.same_process(me.pid, me.create_time()) == me
    assert processes.same_process(me.pid, me.create_time() - 100) is None
    for pid, start in ((None, None), ("x", 1), (-5, 1.0), (2**40, 1.0), (me.pid, "soon")):
        assert processes.same_process(pid, start) is None


@pytest.mark.parametrize(
    "row",
    [{"messages": "Who?"}, {"messages": [{"role": "user"}]}, {"messages": []}, {"must": "Luna"},
     {"messages": [{"role": "assistant", "content": "I am Luna."}]}],
)  # fmt: skip
def test_a_broken_probe_is_named_by_whoever_reads_it(tmp_path: Path, row: dict[str, Any]) -> None:
    good = {"id": "p", "suite": "held_out", "messages": [{"role": "user", "content": "Who?"}]}
    dataset = paths.DatasetPaths(tmp_path)
    fsio.write_jsonl(dataset.probes, [good])
    assert prompts.load(prompts.HELD_OUT, dataset) == ["Who?"]
    fsio.write_jsonl(dataset.probes, [good, {**good, **row}])
    for read in (lambda: prompts.load(prompts.HELD_OUT, dataset),
                 lambda: suites.read_probes(dataset.probes)):  # fmt: skip
        with pytest.raises(UserError, match="holds a line that is no probe"):
            read()


@pytest.mark.parametrize(
    "record",
    [
        {"type": "metric", "step": 1, "max_steps": -1, "t": 1.0},
        {"type": "metric", "step": -5, "max_steps": 9, "t": 1.0},
        {"type": "progress", "stage": "x", "done": 1, "total": 10**400, "t": 1.0},
        {"type": "metric", "step": 1, "max_steps": 9, "t": float("nan")}, {"type": ["metric"]},
    ],
)  # fmt: skip
def test_a_count_of_a_stranger_is_no_progress(record: dict[str, Any], tmp_path: Path) -> None:
    """Fewer than no steps ended the look at a run, and with it the page (found by fuzzing)."""
    run = RunPaths(tmp_path)
    run.metrics.write_text(json.dumps(record) + "\n")
    assert progress_of(run, "train") == Progress()


def test_a_time_beyond_all_numbers_takes_no_list_down(workspace: Path) -> None:
    run = RunPaths(paths.runs_dir() / "odd")
    run.root.mkdir(parents=True)
    spec = {"schema": 1, "kind": "train", "name": "n", "params": {}, "seq": 1, "mark": "m"}
    run.spec.write_text(json.dumps(spec))
    for record in ({"started": 10**400}, {"pid": 10**400}, {"pid": 1, "start_time": 10**400}):
        run.supervisor.write_text(json.dumps({"pid": 1, "started": 1.0, "boot_id": "x", **record}))
        assert [summary.id for summary in api.list_runs()] == ["odd"]
        api.status(run)


def test_a_number_that_no_float_can_hold_is_no_json(tmp_path: Path) -> None:
    """As a loss it ended the curves of the page that shows the run (found by fuzzing)."""
    path = tmp_path / "metrics.jsonl"
    lines = [{"type": "metric", "step": step, "loss": 10 ** (400 * step)} for step in (0, 1)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert MetricsReader(path).refresh().last["step"] == 0
    with pytest.raises(ValueError, match="401 digits"):
        fsio.loads(json.dumps({"a": 10**400}))
    assert fsio.loads(json.dumps({"a": "9" * 400, "b": 10**20})) == {"a": "9" * 400, "b": 10**20}
