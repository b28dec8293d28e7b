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
from core.chat.columns import Column
from core.chat.dialogue import Reply, Turn
from core.inference.settings import GenerationSettings
from core.jobs.locks import DeviceLock
from core.models import bundled
from pages._ui.compare import state as compare_state

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
def own_worker() -> Iterator[None]:
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


def words(elements: Any) -> str:
    return "\n".join(str(e.value) for e in elements)


def test_an_empty_workspace_offers_the_base_and_the_prompted_base(workspace: Path) -> None:
    app = open_page()
    assert app.selectbox(key="compare_side_a").value.startswith("Base:")
    assert app.selectbox(key="compare_side_b").value == "Base + persona system prompt"
    assert "Nothing is loaded" in words(app.caption)
    assert "No conversation yet" in words(app.info)
    assert "No evaluation yet" in words(app.info)


@pytest.mark.parametrize("swapped", [False, True])
def test_ask_vote_and_open_again(
    tiny_workspace: Path, swapped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blind whichever way the columns were shuffled."""
    monkeypatch.setattr(
        votes, "seats", lambda chat, turn, columns: sorted(columns, reverse=swapped)
    )
    app = open_page()
    assert app.selectbox(key="compare_side_b").value == "Merged: 20261124-luna / export/merged"
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
    assert "1 vote. Ties (1)" in words(app.caption)
    chat = app.query_params["chat"][0]
    again = open_page(chat=chat)
    assert "Who are you?" in words(again.markdown)
    assert again.selectbox(key="compare_side_b").value.startswith("Merged:")
    for view in ("Differences", "Persona", "Raw"):
        again.segmented_control(key="compare_view").set_value(view).run()
        assert not again.exception


def test_presets_and_a_conversation_that_is_gone(workspace: Path) -> None:
    app = open_page(chat="20260101-000000-dead")
    assert "is not there" in words(app.warning)
    app.segmented_control(key="compare_preset").set_value("web demo").run()
    assert app.slider(key="compare_temperature").value == 0.8
    assert app.slider(key="compare_repetition_penalty").value == 1.005


def test_the_page_says_before_it_cuts(tiny_workspace: Path) -> None:
    column = Column("a", "base", "Base: SmolLM2-135M-Instruct (bundled)", "bundled")
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


def test_a_busy_device_is_named(tiny_workspace: Path) -> None:
    lock = DeviceLock("train 20261124-kai")
    assert lock.acquire()
    try:
        app = open_page()
        assert "train 20261124-kai" in words(app.info)
        app.button(key="compare_load").click().run()
        assert "device is busy" in words(app.error)
    finally:
        lock.release()


def test_a_batch_sorts_by_change(tiny_workspace: Path) -> None:
    app = open_page()
    app.number_input(key="compare_max_new_tokens").set_value(4)
    app.selectbox(key="compare_pack").set_value("general.en")
    app.number_input(key="compare_batch_n").set_value(2).run()
    app.button(key="compare_batch_run").click().run()
    compare_state.batches()["latest"].wait()
    app.run()
    assert not app.exception
    assert "2 prompts got another reply" in words(app.caption)
    assert "KL 0.000" in words(app.caption), "both columns are the same model"
