"""A pipe, a device, a socket or 129 MB where a file belongs: nothing waits, nothing fills up.

Folders come from others (archives, shared disks), and an archive may hold a pipe as well as a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from core import fsio, paths
from core.chat import transcripts
from core.chat.columns import Column, discover
from core.data import drafts, store
from core.errors import UserError
from core.evaluation import userprobes
from core.jobs import api, journal, metrics
from core.models import catalog, lora
from core.models import folder as folders
from core.paths import RunPaths
from core.persona import packs
from core.training import checkpoints, history
from core.weights import manifest
from core.weights.checkpoint import open_checkpoint
from core.weights.tensors import read_safetensors

#: The old way waited for ever, or until the memory was full.
pytestmark = pytest.mark.timeout(60)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that reading what is too large takes no time."""
    monkeypatch.setattr(fsio, "MAX_BYTES", 1 << 20)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(fsio.MAX_BYTES + 1)


ODD = {"pipe": pipe, "endless": endless, "huge": huge}
odd = pytest.mark.parametrize("put", ODD.values(), ids=ODD.keys())
Put = Callable[[Path], None]


def instead(path: Path, put: Put) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    put(path)


@odd
def test_a_file_is_read_only_if_it_is_one(put: Put, tmp_path: Path) -> None:
    put(tmp_path / "x")
    with pytest.raises(OSError, match=r"ordinary|larger"):
        fsio.read_bytes(tmp_path / "x")
    with pytest.raises(UserError, match="cannot be read"):
        fsio.read_json(tmp_path / "x")


@odd
def test_runs_are_listed_and_deleted(put: Put) -> None:
    names = [
        *("spec.json", "exit.json", "supervisor.json", "error.json", "result.json", "sweep.json"),
        *("note.txt", "training.json", "stop", "metrics.jsonl", "events.jsonl", "log.txt"),
    ]
    good = api.create("train", {"model": "bundled"}, name="good")
    bad = []
    for name in names:
        run = api.create("train", {"model": "bundled"}, name="bad")
        if put is huge and name in ("metrics.jsonl", "events.jsonl", "log.txt"):
            continue  # read in pieces; test_disk has a log of 2 GB
        instead(run.root / name, put)
        bad.append(run)
    listed = api.list_runs()
    assert {s.root for s in listed} >= {good.root, *(run.root for run in bad)}
    for run in bad:
        if run.spec.is_file() and run.spec.stat().st_size < 10**6:
            api.status(run)
        metrics.MetricsReader(run.metrics).refresh()
        journal.tail(run.log)
        journal.read_shared(run.events)
        history.read_note(run)
        api.delete(run)
        assert not run.root.exists()
    discover()


@odd
def test_other_lists(put: Put) -> None:
    instead(paths.chats_dir() / "odd.jsonl", put)
    assert [row.id for row in transcripts.list_chats()] == ["odd"]
    with pytest.raises(UserError):
        transcripts.read("odd")
    transcripts.delete("odd")
    instead(paths.datasets_dir() / "odd" / "dataset.json", put)
    assert [s.name for s in store.list_datasets()] == ["odd"]
    instead(paths.packs_dir() / "odd.yaml", put)
    assert packs.title("odd") == "odd" if "odd" in packs.all_packs() else True
    work = RunPaths(paths.runs_dir() / "odd").work
    instead(work / checkpoints.LISTING, put)
    assert checkpoints.listed(work) == {}
    assert checkpoints.scan(work) == []
    drafts_file = paths.drafts_dir() / "odd.jsonl"
    if put is not huge:  # read line by line
        instead(drafts_file, put)
        assert list(drafts._read_log(drafts_file)) == []


@odd
def test_files_that_a_person_names(put: Put, tmp_path: Path) -> None:
    for name, read in (
        ("probes.yaml", userprobes.read),
        ("MANIFEST.json", lambda path: manifest.verify(path.parent)),
        ("config.json", lambda path: catalog.resolve(str(path.parent))),
        ("adapter_config.json", lambda path: lora.read(path.parent)),
        ("model.safetensors", read_safetensors),
        ("iter_2.pth", open_checkpoint),
    ):
        place = tmp_path / name.partition(".")[0]
        instead(place / name, put)
        with pytest.raises(UserError):
            read(place / name)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "README.md", "x.py"])
def test_a_model_folder_with_a_pipe_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    instead(tmp_path / name, pipe)
    for ask in (folders.check, folders.require_files, lambda f: catalog.resolve(str(f))):
        with pytest.raises(UserError, match="no file"):
            ask(tmp_path)


def test_a_chat_beside_a_broken_one_is_read() -> None:
    good = transcripts.create([Column("a", "base", "Base", "bundled")])
    instead(paths.chats_dir() / "odd.jsonl", pipe)
    assert transcripts.read(good.id).id == good.id
