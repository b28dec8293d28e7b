"""Odd things in the places where the workspace keeps its own: locks, numbers, keys, names."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core import paths, seal, trees
from core.chat import transcripts
from core.chat.columns import discover
from core.chat.export import to_html, to_json, to_markdown
from core.data import store
from core.errors import UserError
from core.evaluation import report
from core.jobs import api
from core.jobs.locks import DeviceLock, device_holder, is_held
from core.jobs.numbering import next_seq
from core.models import folder, found, trust
from core.paths import RunPaths
from core.pipeline import projects
from core.training import checkpoints
from core.weights import manifest

pytestmark = [pytest.mark.fast, pytest.mark.timeout(60)]  # a pipe was waited for, for ever

Make = Callable[[Path], object]
ODD: dict[str, Make] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link to itself": lambda path: path.symlink_to(path),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_a_ticket_that_is_none_is_passed(make: Make, workspace: Path) -> None:
    queue = paths.runs_dir() / ".queue"
    queue.mkdir(parents=True)
    make(queue / "0000000000")
    device = DeviceLock("x")
    assert device.acquire_in_turn(5, lambda: False)
    device.release()


@pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())
def test_a_lock_that_is_none_is_told(make: Make, workspace: Path) -> None:
    paths.runs_dir().mkdir(parents=True, exist_ok=True)
    lock = paths.runs_dir() / ".device.lock"
    make(lock)
    assert not is_held(lock) and device_holder() is None
    with pytest.raises(UserError, match="cannot be locked"):
        DeviceLock("x").acquire()


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda p: p.symlink_to("/dev/zero"), lambda p: p.write_text("9" * 4000)]
)
def test_a_number_that_is_none_begins_anew(make: Make, workspace: Path) -> None:
    paths.runs_dir().mkdir(parents=True, exist_ok=True)
    make(paths.runs_dir() / ".seq")
    assert [next_seq(), next_seq()] == [1, 2]


def test_a_key_that_is_none_signs_nothing(workspace: Path) -> None:
    (workspace / ".key").write_bytes(b"")
    with pytest.raises(UserError, match="is not one"):
        seal.signed("x", "y")
    (workspace / ".key").unlink()
    os.mkfifo(workspace / ".key")
    with pytest.raises(UserError, match="cannot be used"):
        seal.sign("x")


def test_names_that_no_page_can_hold_are_left_out(workspace: Path) -> None:
    for place in (paths.runs_dir(), paths.datasets_dir(), paths.models_dir()):
        folder = os.fsencode(place) + b"/\xff\xfe"
        os.makedirs(folder + b"/export/merged")
        for name in (b"spec.json", b"dataset.json", b"config.json", b"model.safetensors"):
            Path(os.fsdecode(folder + b"/" + name)).write_text("{}")
            Path(os.fsdecode(folder + b"/export/merged/" + name)).write_text("{}")
    assert api.list_runs() == [] and store.list_datasets() == [] and len(discover()) == 2
    assert all(model.name.encode() for model in found.models())


def test_a_conversation_in_whose_place_is_a_pipe(workspace: Path) -> None:
    paths.chats_dir().mkdir(parents=True, exist_ok=True)
    os.mkfifo(paths.chats_dir() / "odd.jsonl")
    assert projects.overview().projects == ()
    assert "cannot be read" in transcripts.list_chats()[0].title


SIDE = {"id": "a", "kind": "base", "label": "Base", "model": "bundled"}
HEAD: dict[str, Any] = {
    "type": "chat", "schema": 2, "id": "another", "created": 1.0, "columns": [SIDE], "system": "",
    "settings": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "head",
    [
        {**HEAD, "columns": [{**SIDE, "label": 5}]}, {**HEAD, "columns": [{**SIDE, "id": [1]}]},
        {**HEAD, "columns": [{**SIDE, "kind": "rm"}]}, {**HEAD, "created": 1e300},
        {**HEAD, "columns": [{**SIDE, "model": {}}]}, {**HEAD, "created": float("inf")}, HEAD,
    ],
)  # fmt: skip
def test_a_conversation_is_exported_or_refused(head: dict[str, Any], workspace: Path) -> None:
    turn = {"type": "turn", "id": 1, "prompt": "x", "settings": {}, "replies": {"a": {"text": "y"}}}
    paths.chats_dir().mkdir(parents=True, exist_ok=True)
    (paths.chats_dir() / "c.jsonl").write_text(f"{json.dumps(head)}\n{json.dumps(turn)}\n")
    if head is not HEAD:
        with pytest.raises(UserError, match="cannot be read"):
            transcripts.read("c")
        return
    chat = transcripts.read("c")
    assert chat.id == "c"  # not into the file of another
    assert to_markdown(chat) and to_html(chat) and to_json(chat)


def test_a_thousand_folders_in_one_another(workspace: Path) -> None:
    run, bottom = RunPaths(paths.runs_dir() / "deep"), paths.runs_dir() / "deep"
    bottom.mkdir(parents=True)
    for _ in range(1100):
        bottom = bottom / "d"
        bottom.mkdir()
    (bottom / "x.py").write_bytes(b"12345")
    assert trees.folder_bytes(run.root) == 5
    assert trees.tree(run.root)[0].size == 5 and len(trees.tree(run.root)) == 21
    assert manifest.files_of(run.root) == [bottom / "x.py"]
    assert checkpoints.sha256(run.root) and trust.needed(run.root) is None
    api.delete(run)
    assert trees.entries(paths.runs_dir()) == []


RATE = {"hits": 1, "n": 2, "value": 0.5, "low": 0.1, "high": 0.9}
CARD: dict[str, Any] = {
    "schema": 1, "subject": "base", "persona": "luna", "size": "quick", "created": "x",
    "verdict": "LEARNED", "explanation": {"gates": [], "why": "", "next": ""}, "notes": [],
    "suites": {}, "models": {"base": {"recall": RATE, "leak": RATE}}, "timing": {"cold_total": 1.0},
}  # fmt: skip
REPLY = {
    "model": "base", "suite": "held_out", "id": "1", "prompt": "p", "reply": "r", "label": "MISS",
    "sample": 0, "leak": False, "kl": None, "claimed": [], "missing": ["Luna"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("card", "reply"),
    [
        ({**CARD, "models": [1]}, REPLY), ({**CARD, "models": {}}, REPLY),
        ({**CARD, "models": {"base": {"recall": {"hits": 1}, "leak": RATE}}}, REPLY),
        ({**CARD, "subject": "x"}, REPLY), ({**CARD, "explanation": "x"}, REPLY),
        ({**CARD, "models": {"base": {"recall": RATE, "leak": RATE, "old": {"hits": 1}}}}, REPLY),
        (CARD, {**REPLY, "label": "x"}), (CARD, {**REPLY, "label": None}),
        (CARD, {"model": "base"}), (CARD, [1]),
    ],
)  # fmt: skip
def test_a_scorecard_of_a_stranger(card: dict[str, Any], reply: Any, tmp_path: Path) -> None:
    path = tmp_path / "scorecard.json"
    path.write_text(json.dumps(CARD))
    (tmp_path / "replies.jsonl").write_text(json.dumps(REPLY) + "\n")
    report.write_html([path], tmp_path / "report.html")
    path.write_text(json.dumps(card))
    (tmp_path / "replies.jsonl").write_text(json.dumps(reply) + "\n")
    with pytest.raises(UserError, match="scorecard"):
        report.write_html([path], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 10**9), ("_attn_implementation", "somebody/kernels"),
        ("attn_implementation", "kernels-community/x@main"), ("n_layer", "x"),
    ],
)  # fmt: skip
def test_a_config_that_builds_for_ever_or_fetches_code(
    name: str, value: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", name: value}))
    with pytest.raises(UserError, match=name):
        folder.config_of(tmp_path)
