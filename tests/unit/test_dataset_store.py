"""Dataset versions, drafts with undo, the editing table, own packs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import fsio, paths
from core.conversation import Conversation
from core.data import drafts, store
from core.data.drafts import DatasetDraft
from core.data.grid import from_table, to_table
from core.errors import UserError, UserErrors
from core.persona import packs

pytestmark = pytest.mark.fast


def row(name: str, reply: str = "a", kind: str = "own", rounds: int = 1) -> Conversation:
    turns = [{"role": "user", "content": f"q {name}"}, {"role": "assistant", "content": reply}]
    return Conversation(name, turns * rounds, kind)  # type: ignore[arg-type]


ROWS = [row(f"r{i}") for i in range(5)]


def texts(draft: DatasetDraft) -> list[tuple[str, str]]:
    return [(r.id, r.messages[-1]["content"]) for r in draft.rows()]


# --- versions ---


def test_save_list_load_delete() -> None:
    store.save("one", ROWS, note="first")
    store.save("two", [row("x", kind="identity")], parent="one")
    first, second = sorted(store.list_datasets(), key=lambda s: s.name)
    assert (first.name, first.rows, first.note, first.parent) == ("one", 5, "first", "")
    assert (second.parent, second.kinds) == ("one", {"identity": 1})
    assert list(store.rows("one")) == ROWS
    manifest = store.manifest("one")
    assert manifest["sha256"]["train.jsonl"] == fsio.sha256_file(store.dataset("one").train)
    store.delete("one")
    assert [s.name for s in store.list_datasets()] == ["two"]
    with pytest.raises(UserError, match="no dataset 'one'"):
        store.dataset("one")


def test_a_version_takes_over_persona_and_probes() -> None:
    made = store.save("one", ROWS, extra={"spec": {"seed": 7}})
    fsio.atomic_write_text(made.probes, "{}\n")
    fsio.atomic_write_text(made.persona, "x: y\n")
    copy = store.save("two", ROWS[:1], parent="one")
    assert copy.probes.read_text() == "{}\n"
    assert copy.persona.read_text() == "x: y\n"
    assert store.manifest("two")["spec"] == {"seed": 7}
    assert set(store.manifest("two")["sha256"]) == {"train.jsonl", "probes.jsonl", "persona.yaml"}


@pytest.mark.parametrize(
    "name", ["../x", "/etc", "con", "a" * 300, "a\0b", "%2e%2e", "", ".x", "A"]
)
def test_names_that_leave_the_folder_are_refused(name: str, workspace: Path) -> None:
    with pytest.raises(UserError):
        store.save(name, ROWS)
    with pytest.raises(UserError):
        store.delete(name)
    assert {p.name for p in workspace.iterdir()} <= {"datasets", ".key"}


def test_a_taken_name_is_refused_with_a_free_one() -> None:
    store.save("one", ROWS)
    with pytest.raises(UserError, match="taken") as error:
        store.save("one", ROWS)
    assert "'one-2'" in error.value.fix


def test_linked_folders_are_neither_listed_nor_deleted(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    paths.datasets_dir().mkdir(parents=True)
    (paths.datasets_dir() / "link").symlink_to(elsewhere)
    assert store.list_datasets() == []
    with pytest.raises(UserError):
        store.delete("link")
    assert elsewhere.is_dir()


def test_nothing_appears_when_saving_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no rows"):
        store.save("empty", [])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk, pytest.raises(UserError, match="cannot save"):
        disk.setattr(os, "rename", full)
        store.save("one", ROWS)
    assert list(paths.datasets_dir().iterdir()) == []


def test_unusable_folders_are_listed_with_the_reason() -> None:
    store.save("good", ROWS)
    (paths.datasets_dir() / "half").mkdir()
    bad = paths.datasets_dir() / "bad"
    bad.mkdir()
    (bad / "dataset.json").write_text("{nonsense")
    problems = {s.name: s.problem for s in store.list_datasets()}
    assert problems["good"] == ""
    assert "not finished" in problems["half"]
    assert "not valid JSON" in problems["bad"]


def test_equal_ids_are_made_unique() -> None:
    store.save("one", [row("a"), row("a", "b"), row("a-2")])
    assert [r.id for r in store.rows("one")] == ["a", "a-2", "a-2-2"]


# --- drafts ---


def test_edits_survive_a_reload_and_can_be_undone() -> None:
    store.save("one", ROWS)
    draft = DatasetDraft("one")
    draft.write([row("r1", "changed"), row("new", "added")], ["r4"], "first")
    draft.write([row("r0", "again")])
    expected = [("r0", "again"), ("r1", "changed"), ("r2", "a"), ("r3", "a"), ("new", "added")]
    assert texts(DatasetDraft("one")) == expected
    reloaded = DatasetDraft("one")
    reloaded.undo()
    assert texts(reloaded)[0] == ("r0", "a")
    reloaded.undo()
    assert texts(reloaded) == texts_of(ROWS)
    reloaded.undo()
    reloaded.redo()
    reloaded.redo()
    assert texts(DatasetDraft("one")) == expected
    reloaded.undo()
    reloaded.write([row("r2", "other")])
    assert not reloaded.undone, "a new edit ends what could be redone"


def texts_of(rows: list[Conversation]) -> list[tuple[str, str]]:
    return [(r.id, r.messages[-1]["content"]) for r in rows]


def test_two_windows_edit_one_draft() -> None:
    store.save("one", ROWS)
    left, right = DatasetDraft("one"), DatasetDraft("one")
    left.write([row("r0", "left")])
    right.write([row("r1", "right")])
    assert texts(DatasetDraft("one"))[:2] == [("r0", "left"), ("r1", "right")]


def test_a_torn_line_costs_that_edit_only() -> None:
    store.save("one", ROWS)
    draft = DatasetDraft("one")
    draft.write([row("r0", "kept")])
    log = paths.drafts_dir() / "one.jsonl"
    with log.open("ab") as file:
        file.write(b'{"do": "edit", "rows": [{"id"')
    DatasetDraft("one").write([row("r1", "after")])
    assert texts(DatasetDraft("one"))[:2] == [("r0", "kept"), ("r1", "after")]


def test_saving_makes_a_version_and_empties_the_draft() -> None:
    store.save("one", ROWS)
    draft = DatasetDraft("one")
    draft.write([], ["r0", "r1"])
    with pytest.raises(UserError):
        draft.save("one")
    assert draft.changed, "a failed save keeps the edits"
    draft.save("two")
    assert not DatasetDraft("one").changed
    assert len(DatasetDraft("one")) == 5
    assert len(DatasetDraft("two")) == 3
    assert store.manifest("two")["parent"] == "one"


def test_pages_kinds_and_search() -> None:
    store.save("one", [row(f"r{i}", kind="identity" if i % 2 else "own") for i in range(10)])
    draft = DatasetDraft("one")
    draft.write([row("r1", "needle", "own"), row("z", "NEEDLE too", "identity")], ["r3"])
    assert [r.id for r in draft.page(8, 5)] == ["r9", "z"]
    assert draft.count("identity") == 4
    assert [r.id for r in draft.page(0, 9, "identity")] == ["r5", "r7", "r9", "z"]
    assert [r.id for r in draft.find("needle")] == ["r1", "z"]
    assert len(draft.ids()) == len(draft) == 10


@settings(
    max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "remove", "undo", "redo"]), st.integers(0, 6)),
        max_size=12,
    )
)
def test_a_draft_equals_a_plain_history(steps: list[tuple[str, int]]) -> None:
    name = store.free_name("d")
    store.save(name, ROWS)
    draft = DatasetDraft(name)
    past: list[dict[str, str]] = [dict(texts_of(ROWS))]
    future: list[dict[str, str]] = []
    for at, (action, number) in enumerate(steps):
        now = dict(past[-1])
        if action == "write":
            draft.write([row(f"r{number}", f"v{at}")])
            now[f"r{number}"] = f"v{at}"
        elif action == "remove":
            draft.write([], [f"r{number}"])
            now.pop(f"r{number}", None)
        elif action == "undo":
            draft.undo()
            if len(past) > 1:
                future.append(past.pop())
            continue
        else:
            draft.redo()
            if future:
                past.append(future.pop())
            continue
        past.append(now)
        future.clear()
    assert dict(texts(draft)) == past[-1] == dict(texts(DatasetDraft(name)))


def test_the_form_is_remembered() -> None:
    assert drafts.load_form() == {}
    drafts.save_form({"pack": "assistant", "slots": {"assistant": {"name.en": "Mira {{x}}"}}})
    assert drafts.load_form()["slots"]["assistant"]["name.en"] == "Mira {{x}}"


def test_a_form_that_cannot_be_read_is_an_empty_form() -> None:
    drafts.save_form({"pack": "x"})
    (paths.drafts_dir() / "persona-form.json").write_text("{torn")
    assert drafts.load_form() == {}


def test_edits_go_with_their_dataset() -> None:
    store.save("one", ROWS)
    DatasetDraft("one").write([row("r0", "old edit")])
    store.delete("one")
    store.save("one", ROWS)
    assert not DatasetDraft("one").changed


# --- the editing table ---


def test_an_unchanged_table_asks_for_nothing() -> None:
    rows = [
        row("a", rounds=3),
        Conversation("b", [{"role": "system", "content": "s"}, *row("b").messages], loss=[False]),
        replace(row("c"), kind="rehearsal", intent="i", cluster="k", locale="zh", cut=True),
    ]
    changes = from_table(to_table(rows), rows)
    assert not changes
    assert not changes.problems


def test_a_cut_reply_is_whole_once_it_is_written_anew() -> None:
    rows = [replace(row("a", rounds=2), cut=True)]
    table = to_table(rows)
    table[0]["reply"] = "first, changed"
    assert from_table(table, rows).rows[0].cut
    table[1]["reply"] = "second, to its end."
    assert not from_table(table, rows).rows[0].cut


def test_edit_add_and_remove_lines() -> None:
    rows = [row("a", rounds=2), row("b"), row("c")]
    table = to_table(rows)
    table[1]["reply"] = "second"
    table[0]["learn"] = False
    del table[2]
    table.append({"id": None, "user": "new?", "reply": "yes", "learn": None, "kind": float("nan")})
    table.append({"id": None, "user": None, "reply": None})
    changes = from_table(table, rows)
    assert changes.problems == []
    assert changes.removed == ["b"]
    added, edited = changes.rows
    assert edited.loss == [False, True]
    assert edited.messages[3]["content"] == "second"
    assert (added.kind, added.loss, added.rounds) == ("own", [True], 1)
    assert changes.label == "2 written; 1 removed"


def test_an_incomplete_line_is_named() -> None:
    rows = [row("a")]
    table = [*to_table(rows), {"id": "", "user": "half", "reply": ""}]
    table[0]["user"] = "  "
    changes = from_table(table, rows)
    assert len(changes.problems) == 2
    assert any("new line 2, round 1, reply" in p for p in changes.problems)
    assert any(p.startswith("a, round 1, user") for p in changes.problems)


# --- packs ---


def test_duplicate_edit_and_delete_a_pack() -> None:
    shipped = next(iter(packs.all_packs()))
    with pytest.raises(UserError, match="shipped"):
        packs.write(shipped, "x")
    path = packs.duplicate(shipped, "mine")
    assert packs.is_own(path)
    text = path.read_text(encoding="utf-8")
    packs.write("mine", text + "\n# a remark\n")
    with pytest.raises(UserErrors):
        packs.write("mine", "schema: persona/1\n")
    assert path.read_text(encoding="utf-8").endswith("# a remark\n")
    with pytest.raises(UserError):
        packs.duplicate(shipped, "../evil")
    packs.delete("mine")
    assert "mine" not in packs.all_packs()


@pytest.mark.parametrize("line", ["[]", "3", '{"id": 1}', '{"messages": []}', "[" * 5000, "{"])
def test_a_line_that_is_no_row_is_named(line: str) -> None:
    """Not by a KeyError on the page that shows the rows."""
    folder = paths.datasets_dir() / "odd"
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text('{"schema": 1}')
    (folder / "train.jsonl").write_text(line + "\n")
    with pytest.raises(UserError) as caught:
        DatasetDraft("odd")
    assert "train.jsonl:1" in caught.value.where
