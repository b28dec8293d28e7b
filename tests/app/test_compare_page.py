"""The Compare page without a browser: what it shows in each state of the workspace."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from core import fsio, paths
from core.chat import transcripts, votes
from core.chat.columns import BUNDLED, Column
from core.chat.dialogue import Reply, Turn
from core.inference.settings import GenerationSettings
from core.jobs import api
from core.jobs.locks import DeviceLock
from core.models import bundled
from pages._ui.compare import state as compare_state
from tests.fakes.trained_run import make_run

PAGE = str(paths.REPO / "pages" / "4_Compare.py")


@pytest.fixture
def tiny_workspace(workspace: Path, tiny_llama: Path) -> Path:
    """A workspace whose bundled model is the tiny one, with a merged run of it."""
    base = workspace / "models" / "smollm2-135m-instruct"
    shutil.copytree(tiny_llama, base)
    fsio.write_json(base / "workbench.json", {"schema": 1, "format": bundled.FORMAT})
    (workspace / "runs" / "20261124-luna" / "export").mkdir(parents=True)
    (workspace / "runs" / "20261124-luna" / "export" / "merged").symlink_to(tiny_llama)
    return workspace


@pytest.fixture(autouse=True)
def own_worker(forked_workers: None) -> Iterator[None]:
    """Each test starts without what another one cached, and leaves no process behind."""
    st.cache_resource.clear()
    st.cache_data.clear()
    yield
    compare_state.worker().close()
    st.cache_resource.clear()


def open_page(**query: str) -> AppTest:
    app = AppTest.from_file(PAGE, default_timeout=120)
    app.query_params.update(query)
    app.run()
    assert not app.exception
    return app


def shown(app: AppTest, column: str) -> str:
    """The model of a column, as the picker names it."""
    box = app.selectbox(key=f"compare_model_{column}")
    return str(box.format_func(box.value))


def chat_of(app: AppTest) -> str:
    """Id of the conversation in the address."""
    found = app.query_params["chat"]
    return found if isinstance(found, str) else found[0]


def words(elements: Any) -> str:
    return "\n".join(str(e.value) for e in elements)


def test_an_empty_workspace_shows_the_base_alone_and_the_way_to_a_persona(workspace: Path) -> None:
    app = open_page()
    assert shown(app, "a") == "Base: SmolLM2-135M-Instruct"
    assert "compare_model_b" not in app.session_state, "a second one would answer the same"
    assert "no tuned model yet" in words(app.markdown)
    assert app.button(key="next_dataset_").label == "Build the dataset"
    assert "Nothing is loaded" in words(app.caption)
    app.segmented_control(key="compare_count").set_value(2).run()
    app.selectbox(key="compare_model_b").set_value("base|bundled|").run()
    assert "the same model" in words(app.warning)
    assert "No conversation yet" in words(open_page(tab="transcripts").info)
    assert "No scorecard yet" in words(open_page(tab="scorecard").info)
    assert "no tab" in words(open_page(tab="nonsense").warning)


@pytest.mark.parametrize("swapped", [False, True])
def test_ask_vote_and_open_again(
    tiny_workspace: Path, swapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blind whichever way the columns were shuffled."""
    monkeypatch.setattr(
        votes, "shuffled", lambda chat, turn, columns: sorted(columns, reverse=swapped)
    )
    app = open_page()
    assert shown(app, "b") == "Merged: 20261124-luna"
    app.number_input(key="compare_max_new_tokens").set_value(6)
    app.toggle(key="compare_blind").set_value(True).run()
    app.chat_input(key="compare_prompt").set_value("Who are you?").run()
    assert not app.exception
    assert "**Reply 1**" in words(app.caption)
    assert "tokens/s" not in words(app.caption), "speed would give the model away"
    choices = [b for b in app.button if str(b.key).startswith("compare_vote_0_")]
    assert [b.label for b in choices] == ["Left is better", "Right is better", "Tie", "Both bad"]
    choices[2].click().run()
    assert "**Reply 1**" not in words(app.caption)
    assert "6 tokens" in words(app.caption)
    assert "1 vote. Ties (1)" in words(open_page(tab="transcripts").caption)
    chat = chat_of(app)
    again = open_page(chat=chat)
    assert "Who are you?" in words(again.markdown)
    assert shown(again, "b") == "Merged: 20261124-luna"
    assert again.number_input(key="compare_max_new_tokens").value == 6, "settings are kept too"
    for view in ("differences", "persona", "raw"):
        again.segmented_control(key="compare_view").set_value(view).run()
        assert not again.exception


def test_presets_and_a_conversation_that_is_gone(workspace: Path) -> None:
    app = open_page(chat="20260101-000000-dead")
    assert "is not there" in words(app.warning)
    app.segmented_control(key="compare_preset").set_value("web demo").run()
    assert app.slider(key="compare_temperature").value == 0.8
    assert app.slider(key="compare_repetition_penalty").value == 1.005


def test_the_page_says_before_it_cuts(tiny_workspace: Path) -> None:
    column = Column("a", "base", BUNDLED, "bundled")
    chat = transcripts.create([column, Column("b", "prompted", "P", system="Hi.")])
    for _ in range(3):
        said = {s: Reply("word " * 900, "stop") for s in "ab"}
        transcripts.add_turn(chat, Turn("q", GenerationSettings(), said))
    app = open_page(chat=chat.id)
    app.number_input(key="compare_max_new_tokens").set_value(4).run()
    app.chat_input(key="compare_prompt").set_value("And now?").run()
    assert "oldest 2 messages would be left out" in words(app.warning)
    assert len(transcripts.read(chat.id).turns) == 3
    app.button(key="compare_cut_send").click().run()
    assert not app.exception
    saved = transcripts.read(chat.id)
    assert saved.turns[3].replies["a"].cut == 2


def test_a_message_waits_for_the_device_and_can_be_taken_back(tiny_workspace: Path) -> None:
    lock = DeviceLock("train 20261124-kai")
    assert lock.acquire()
    try:
        app = open_page()
        app.button(key="compare_load").click().run()
        assert "device is busy" in words(app.error)
        app.number_input(key="compare_max_new_tokens").set_value(4)
        app.chat_input(key="compare_prompt").set_value("Who are you?").run()
        assert "train 20261124-kai is using the device" in words(app.markdown)
        again = open_page(chat=chat_of(app))
        assert "Who are you?" in words(again.markdown), "it is there after a reload"
        again.button(key="compare_unsend").click().run()
        assert again.chat_input(key="compare_prompt").proto.value == "Who are you?"
        assert "is using the device" not in words(again.markdown)
        app.chat_input(key="compare_prompt").set_value("And now?").run()
    finally:
        lock.release()
    app.run()
    app.run()
    assert [t.prompt for t in transcripts.read(chat_of(app)).turns] == ["And now?"]


def test_versions_of_replies_and_questions(tiny_workspace: Path) -> None:
    app = open_page()
    app.number_input(key="compare_max_new_tokens").set_value(4)
    app.chat_input(key="compare_prompt").set_value("One?").run()
    for _ in range(2):
        app.button(key="icon_compare_again_0_b").click().run()
    assert "3 / 3" in words(app.caption) and "temperature 0.8, seed 2" in words(app.caption)
    app.button(key="icon_compare_version_0_b_back").click().run()
    assert "2 / 3" in words(app.caption)
    app.button(key="icon_compare_edit_0").click().run()
    app.text_area[-1].set_value("Two?")
    next(b for b in app.button if b.label == "Resend").click().run()
    assert "Two?" in words(app.markdown) and "2 / 2" in words(app.caption)
    app.button(key="icon_compare_question_0_back").click().run()
    assert "One?" in words(app.markdown) and "2 / 3" in words(app.caption)
    assert not app.exception


def test_a_batch_sorts_by_change(tiny_workspace: Path) -> None:
    app = open_page(tab="batch")
    app.number_input(key="compare_max_new_tokens").set_value(4)
    app.text_area(key="compare_batch_typed").set_value("Who?\nWhat?").run()
    app.button(key="compare_batch_run").click().run()
    compare_state.batches()["latest"].wait()
    app.run()
    assert not app.exception
    assert "0 of 2 prompts got another reply" in words(app.caption)
    assert "KL 0" in words(app.caption), "both columns are the same model"


def _merged(workspace: Path, model: Path, out: Path | None = None) -> str:
    """A finished merge job of a model, as its run stands on disk; its id."""
    job = api.create("merge", {"base": "bundled"}, name="luna")
    folder = out or job.export / "merged"
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(model, folder)
    fsio.write_json(folder / "MANIFEST.json", {"schema": 1})
    fsio.write_json(job.result, {"schema": 1, "merged": str(folder)})
    fsio.write_json(
        job.exit, {"schema": 1, "state": "SUCCEEDED", "reason": "completed", "returncode": 0}
    )
    return job.root.name


def test_the_merge_of_the_address_stands_in_column_b(
    tiny_workspace: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    """Not the usual one, not the conversation shown last; and wherever the job has put it."""
    made = {_merged(tiny_workspace, tiny_llama) for _ in range(2)}
    app = open_page()
    usual = app.selectbox(key="compare_model_b").value.split("|")[1].split("/")[-3]
    (wanted,) = made - {usual}
    app.number_input(key="compare_max_new_tokens").set_value(4)
    app.chat_input(key="compare_prompt").set_value("Who are you?").run()
    before = chat_of(app)
    app.query_params.clear()
    app.query_params["merge"] = wanted
    app.run()
    assert app.selectbox(key="compare_model_b").value.split("|")[1].split("/")[-3] == wanted
    assert "Who are you?" not in words(app.markdown), "a new conversation"
    assert transcripts.read(before).columns[1].model.split("/")[-3] == usual, "left as it was"
    app.selectbox(key="compare_model_b").set_value("base|bundled|").run()
    assert shown(app, "b") == "Base: SmolLM2-135M-Instruct", "one may choose another"
    app.query_params["merge"] = usual
    app.run()
    assert app.selectbox(key="compare_model_b").value.split("|")[1].split("/")[-3] == usual
    out = tmp_path / "elsewhere" / "luna"
    app = open_page(merge=_merged(tiny_workspace, tiny_llama, out))
    assert app.text_input(key="compare_folder_b").value == str(out)
    assert not app.warning and not app.error
    assert "There is no merge" in words(open_page(merge="20260101-000000-gone-dead").warning)


def test_the_folder_of_the_address_is_offered_and_nothing_is_loaded(
    tiny_workspace: Path, tiny_llama: Path
) -> None:
    app = open_page(folder=str(tiny_llama))
    assert app.segmented_control(key="compare_count").value == 2
    assert app.text_input(key="compare_folder_b").value == str(tiny_llama)
    assert "Named in the address" in words(app.caption)
    assert "Nothing is loaded." in words(app.caption)
    assert not compare_state.worker().alive
    app.number_input(key="compare_max_new_tokens").set_value(4).run()
    assert not compare_state.worker().alive
    app.chat_input(key="compare_prompt").set_value("Who are you?").run()
    assert not app.exception
    chat = transcripts.read(chat_of(app))
    assert chat.columns[1].model == str(tiny_llama) and chat.turns[0].replies["b"].tokens == 4
    assert "folder" not in app.query_params
    again = open_page(chat=chat.id, folder="/etc")
    assert again.text_input(key="compare_folder_b").value == str(tiny_llama), "a chat keeps its own"


@pytest.mark.parametrize("folder", ["/nowhere", "~nobody-of-this-name/x", "\0", "x" * 5000, "/"])
def test_a_folder_of_the_address_that_is_none_says_so(workspace: Path, folder: str) -> None:
    app = open_page(folder=folder)
    assert app.error and "Nothing is loaded." in words(app.caption)


def test_checkpoints_are_called_by_step_and_the_recommended_is_marked(
    tiny_workspace: Path, tiny_llama: Path
) -> None:
    shutil.rmtree(tiny_workspace / "runs")
    run = make_run(tiny_workspace, tiny_llama, steps=(30, 60), recommended=30)
    app = open_page()
    options = app.selectbox(key="compare_model_b").options
    called = [o for o in options if "step" in o]
    assert [o.split(", ")[-1] for o in called] == ["step 60", "step 30 · recommended"]
    assert not any("iter_" in o for o in options)
    assert shown(app, "b").endswith("step 30 · recommended"), "and stands there at first"
    fsio.write_json(run.root / "sweep.json", {"schema": 1, "recommended": None})
    st.cache_data.clear()
    options = open_page().selectbox(key="compare_model_b").options
    assert not any("recommended" in o for o in options), "the last one is no recommendation"
