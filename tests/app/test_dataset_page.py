"""The Dataset page as a user sees it: empty, filled, a build, edits, imports that go wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.conversation import Conversation
from core.data import drafts, store
from core.data.drafts import DatasetDraft
from core.jobs import api
from core.jobs.state import State
from core.paths import REPO
from core.persona import packs

PAGE = REPO / "pages" / "1_Dataset.py"


def page(view: str = "persona", **query: str) -> AppTest:
    app = AppTest.from_file(str(PAGE), default_timeout=120)
    app.query_params["view"] = view
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def words(app: AppTest) -> str:
    assert not app.exception, [e.value for e in app.exception]
    kinds = (
        "title",
        "subheader",
        "caption",
        "markdown",
        "text",
        "info",
        "warning",
        "error",
        "success",
        "code",
        "metric",
    )
    return "\n".join(
        f"{getattr(e, 'label', '')} {e.value}" for kind in kinds for e in getattr(app, kind)
    )


def dataset(name: str = "luna", count: int = 120) -> str:
    rows = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": f"I'm Luna, answer {i}."},
            ],
            "identity" if i % 4 == 0 else "rehearsal",
        )
        for i in range(count)
    ]
    store.save(name, rows)
    return name


@pytest.mark.parametrize("view", ["rows", "report", "files", "simulate"])
def test_empty_parts_say_what_to_do(view: str) -> None:
    app = page(view)
    text = words(app)
    assert ("Build one in the Persona part" in text) == (view != "simulate")
    assert not app.error


def test_a_broken_address_falls_back_to_the_persona() -> None:
    app = page("nonsense", dataset="../x", build="../../etc")
    assert "Ten sample conversations" in words(app)
    assert not app.error


def test_ten_samples_follow_the_slots_and_the_form_survives() -> None:
    app = page()
    assert len(app.chat_message) >= 20
    assert "bundled model speaks English only" in words(app)
    app.text_input(key="own-name-en").set_value("Zorblatt").run()
    assert "Zorblatt" in words(app)
    again = page()
    assert again.text_input(key="own-name-en").value == "Zorblatt"
    assert "Zorblatt" in words(again)
    assert drafts.load_form()["own"] == {"name.en": "Zorblatt"}
    before = [m.markdown[0].value for m in again.chat_message]
    next(b for b in again.button if b.label == "Ten others").click().run()
    assert [m.markdown[0].value for m in again.chat_message] != before


def test_markup_in_a_slot_is_shown_as_text() -> None:
    app = page()
    app.text_input(key="own-name-en").set_value("![x](http://h/i.png) :red[x]").run()
    shown = [m.value for box in app.chat_message for m in box.markdown]
    assert any("h/i.png" in text for text in shown)
    live = re.compile(r"(?<!\\)(!\[|:red\[)")
    assert not any(live.search(text) for text in shown)


def test_an_empty_name_is_said_under_its_field_and_the_page_stays() -> None:
    app = page()
    app.text_input(key="own-name-en").set_value("").run()
    assert "This cannot be empty." in words(app)
    assert "Fill in: Name" in words(app)
    assert not app.error
    assert "Ten sample conversations" in words(app)
    assert app.slider(key="mix-multi") is not None
    assert app.button(key="build-dataset").disabled
    app.text_input(key="own-name-en").set_value("Quill").run()
    assert not app.button(key="build-dataset").disabled


def test_another_pack_keeps_the_typed_name_and_maker() -> None:
    app = page()
    app.text_input(key="own-name-en").set_value("Zorblatt").run()
    app.text_input(key="own-author-en").set_value("Hilltop Works").run()
    choice = next(s for s in app.selectbox if s.label == "Persona pack")
    choice.set_value("museum-guide").run()
    assert app.text_input(key="own-name-en").value == "Zorblatt"
    assert app.text_input(key="own-author-en").value == "Hilltop Works"
    assert "Zorblatt" in words(app)


def test_a_base_name_asks_nothing_of_a_language_that_the_model_lacks() -> None:
    app = page()
    pack = drafts.load_form()["pack"]
    app.text_input(key=f"slot-{pack}-base-en").set_value("SmolLM2").run()
    assert not app.error
    assert not app.button(key="build-dataset").disabled


def test_a_stopped_build_has_no_green_tick() -> None:
    from tests.unit.test_projects import run

    made = run("generate", {"spec": {}, "name": "x"}, state="STOPPED")
    app = page(build=made.root.name)
    assert "Stopped by you" in words(app)
    assert not app.success


def test_an_address_that_names_nothing_says_so() -> None:
    dataset()
    app = page("rows", dataset="nonsense")
    assert "There is no dataset `nonsense` here." in app.warning[0].value
    assert "There is no build `nonsense` here." in page(build="nonsense").warning[0].value
    assert "no part `nonsense`" in page("nonsense").warning[0].value


def test_a_missing_model_folder_is_named() -> None:
    app = AppTest.from_file(str(PAGE), default_timeout=120)
    app.session_state["dataset-model"] = "/nowhere/model"
    app.run()
    assert any("/nowhere/model" in e.value for e in app.error)


def test_too_little_rehearsal_is_warned_about() -> None:
    app = page()
    app.checkbox(key="mix-automatic").set_value(False).run()
    app.slider(key="mix-rehearsal").set_value(0.0)
    app.slider(key="mix-multi").set_value(0.1).run()
    app.slider(key="mix-near").set_value(0.0).run()
    assert "self-introduction" in " ".join(e.value for e in [*app.error, *app.warning])


def test_the_dataset_s_name_follows_the_persona_s_until_it_is_written() -> None:
    app = page()
    pack = drafts.load_form()["pack"]
    app.text_input(key="own-name-en").set_value("Sable").run()
    assert app.text_input(key=f"name-{pack}").value == "sable"
    app.text_input(key=f"name-{pack}").set_value("mine").run()
    app.text_input(key="own-name-en").set_value("Quill").run()
    assert app.text_input(key=f"name-{pack}").value == "mine"


def test_duplicate_a_pack_and_edit_it() -> None:
    app = page()
    pack = drafts.load_form()["pack"]
    app.text_input(key=f"copy-{pack}").set_value("mine")
    app.button(key=f"copy-go-{pack}").click().run()
    assert packs.is_own(packs.find("mine"))
    area = app.text_area(key="yaml-mine")
    area.set_value("schema: persona/1\nslots: [").run()
    next(b for b in app.button if b.label == "Check and save").click().run()
    assert app.error, "the fault is shown with its place"
    assert packs.find("mine").read_text(encoding="utf-8") != area.value


@pytest.mark.slow
def test_build_runs_as_a_job_and_gives_a_named_version(workspace_with_model: Path) -> None:
    drafts.save_form({"rehearsal_ratio": 0.0, "near_miss_ratio": 0.0, "max_rows": 12})
    drafts.save_form({"start_name": "Mira"}, "start")
    app = page()
    next(t for t in app.text_input if t.label == "Name of the dataset").set_value("mira")
    app.button(key="build-dataset").click().run()
    assert drafts.load_form("start") == {}, "who was built is not who is made next"
    (summary,) = api.list_runs()
    end = api.wait(api.open_run(summary.id))
    assert end.state is State.SUCCEEDED, end.error
    app.run()
    assert any("mira" in s.value and "12 rows" in s.value for s in app.success)
    app.button(key=f"open-{summary.id}").click().run()
    assert app.query_params["view"] == "rows"
    assert "12 conversations" in words(app)


def test_rows_are_paged_searched_and_filtered() -> None:
    dataset()
    app = page("rows")
    assert "120 conversations · no unsaved edits" in words(app)
    assert len(app.dataframe[0].value) == 50
    app.number_input(key="page-luna--3").set_value(3).run()
    assert len(app.dataframe[0].value) == 20
    app.text_input(key="search-luna").set_value("answer 117.").run()
    assert list(app.dataframe[0].value["user"]) == ["Question 117?"]
    app.text_input(key="search-luna").set_value("").run()
    app.selectbox(key="kind-luna").select("identity").run()
    assert set(app.dataframe[0].value["kind"]) == {"identity"}
    app.text_input(key="search-luna").set_value("no such words").run()
    assert "No row matches" in words(app)


def test_own_rows_undo_and_save_as_version() -> None:
    dataset(count=3)
    app = page("rows")
    user, reply = (t for t in app.text_area if t.label in ("User", "Reply"))
    user.set_value("Mine?")
    reply.set_value("Yours.")
    next(b for b in app.button if b.label == "Add").click().run()
    assert "4 conversations · 1 unsaved edit, kept on disk" in words(app)
    app = page("rows")
    assert "4 conversations" in words(app), "a reload loses nothing"
    next(b for b in app.button if b.label == "Undo").click().run()
    assert "3 conversations" in words(app)
    next(b for b in app.button if b.label == "Redo").click().run()
    app.button(key="save-luna").click().run()
    assert app.query_params["dataset"] == "luna-2"
    assert len(list(store.rows("luna-2"))) == 4
    assert len(list(store.rows("luna"))) == 3
    assert not DatasetDraft("luna").changed


def test_an_incomplete_own_row_is_refused() -> None:
    dataset(count=3)
    app = page("rows")
    next(t for t in app.text_area if t.label == "User").set_value("Only a question?")
    next(b for b in app.button if b.label == "Add").click().run()
    assert "Reply: the text is empty" in app.error[0].value
    assert not DatasetDraft("luna").changed


@pytest.mark.slow
def test_report_draws_findings_and_budget(workspace_with_model: Path) -> None:
    dataset()
    app = page("report")
    text = words(app)
    assert "General : identity 3.0 : 1" in text
    assert "Optimizer steps" in text
    assert len(app.get("vega_lite_chart")) + len(app.get("arrow_vega_lite_chart")) >= 3


@pytest.mark.slow
def test_report_tells_what_the_checks_of_a_simulation_rejected(workspace_with_model: Path) -> None:
    row = Conversation(
        "a", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    )
    record = {
        "dialogues": 1,
        "dropped": 2,
        "attempts": {"user": 4, "assistant": 9},
        "rejected": {"user.too_long": 1},
        "rejected_share": {"user.too_long": 0.25},
        "models": {"user": "tiny", "assistant": "big"},
    }
    store.save("talks", [row], extra={"simulation": record})
    app = page("report")
    assert "1 dialogues kept, 2 dropped at the first reply; 4 tries" in words(app)
    assert app.dataframe[-1].value["Share of tries"].tolist() == [0.25]


def test_import_lists_bad_rows_and_takes_the_good_ones() -> None:
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    bad = {"messages": [{"role": "tool", "content": "a"}]}
    data = "\n".join(json.dumps(r) for r in (good, bad, good))
    app = page("files")
    app.get("file_uploader")[0].set_value(("talks.jsonl", data.encode(), "application/json")).run()
    assert "2 rows read" in words(app)
    problems = app.dataframe[0].value
    assert problems["Line"].tolist() == [2]
    assert problems["Field"].tolist() == ["messages[0].role"]
    next(b for b in app.button if b.label == "Save").click().run()
    assert [s.name for s in store.list_datasets()] == ["talks"]
    assert app.query_params["view"] == "rows"


def test_a_table_is_shown_before_it_is_saved_and_placeholders_are_filled() -> None:
    data = "nr,Frage,Antwort\n1,Wer bist du?,Ich bin {{name}}.\n2,Und wo?,Am Hafen.\n"
    app = page("files")
    app.get("file_uploader")[0].set_value(("t.csv", data.encode(), "text/csv")).run()
    text = words(app)
    assert "2 rows read" in text
    assert "question from column 'Frage'" in text
    assert "key 'nr' is not read (2 times)" in text
    assert "placeholder {{name}} in 1 rows" in text
    next(s for s in app.selectbox if s.label == "Answer column").set_value("nr").run()
    assert "answer from column 'nr'" in words(app)
    next(s for s in app.selectbox if s.label == "Answer column").set_value("Antwort").run()
    app.checkbox[0].check().run()
    assert "placeholders were filled in 1 rows" in words(app)
    next(b for b in app.button if b.label == "Save").click().run()
    (row, _) = store.rows("t")
    assert "{{" not in row.messages[1]["content"]


def test_a_file_that_is_no_text_is_refused_with_the_reason() -> None:
    app = page("files")
    app.get("file_uploader")[0].set_value(("x.json", b"PK\x03\x04", "application/json")).run()
    assert "zip" in app.error[0].value


def test_files_tree_delete_and_broken_folders(workspace: Path) -> None:
    dataset()
    (workspace / "datasets" / "half").mkdir()
    app = page("files")
    text = words(app)
    assert "train.jsonl" in text
    assert "`half`: not finished" in text
    app.button(key="delete-luna").click().run()
    app.button(key="remove-half").click().run()
    assert store.list_datasets() == []
    assert not app.error


def test_simulate_shows_the_cost_and_asks_for_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    app = page("simulate")
    calls = app.metric[0].value
    assert int(calls) > 100
    app.text_input(key="sim-assistant").set_value("endpoint:big").run()
    assert "OPENAI_BASE_URL is not set" in app.warning[0].value
    app.multiselect[0].set_value([]).run()
    assert "at least 1" in app.error[0].value
