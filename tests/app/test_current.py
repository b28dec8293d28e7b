"""Which persona and which of her things a session is about: address, session, newest."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core import fsio, paths
from core.jobs import api, locks
from core.paths import REPO
from core.pipeline import projects
from tests.unit.test_projects import dataset, run, whole_way


def shown() -> None:
    """A page that says what is current and chosen."""
    import streamlit as st

    from pages._ui.shell import current

    project = current.current()
    known = [r.id for r in current.seen().runs.values() if r.kind == "train"]
    st.text(project.title if project else "nobody")
    st.text(current.chosen("run", known))
    if st.button("other"):
        current.choose(persona=st.session_state["other"])
        st.rerun()


def look(**query: str) -> AppTest:
    app = AppTest.from_function(shown, default_timeout=60)
    for name, value in query.items():
        app.query_params[name] = value
    return app.run()


def texts(app: AppTest) -> list[str]:
    assert not app.exception
    return [e.value for e in app.text]


def key_of(title: str) -> str:
    return next(p.key for p in projects.overview().projects if p.title == title)


def test_nobody_in_an_empty_workspace(workspace: Path) -> None:
    assert texts(look()) == ["nobody", ""]


def test_the_newest_persona_and_her_newest_run(workspace: Path) -> None:
    whole_way("luna", "Luna")
    made = whole_way("mei-lan", "Mei Lan")
    assert texts(look()) == ["Mei Lan", made["train"].root.name]


def test_the_address_of_an_object_brings_its_persona(workspace: Path) -> None:
    luna = whole_way("luna", "Luna")
    whole_way("mei-lan", "Mei Lan")
    run_id = luna["train"].root.name
    assert texts(look(run=run_id)) == ["Luna", run_id]
    assert texts(look(persona=key_of("Luna"))) == ["Luna", run_id]
    assert texts(look(run=run_id, persona=key_of("Mei Lan"))) == ["Luna", run_id]


def test_an_address_that_names_nothing_says_so_and_shows_hers(workspace: Path) -> None:
    made = whole_way("luna", "Luna")
    app = look(run="nonsense")
    assert "There is no training run `nonsense` here." in app.warning[0].value
    assert texts(app) == ["Luna", made["train"].root.name]


def test_another_persona_is_chosen_with_her_things(workspace: Path) -> None:
    luna, _ = whole_way("luna", "Luna"), whole_way("mei-lan", "Mei Lan")
    app = look()
    app.session_state["other"] = key_of("Luna")
    app.button[0].click().run()
    assert texts(app) == ["Luna", luna["train"].root.name]
    assert key_of("Luna") in app.query_params["persona"]


def test_the_sidebar_switches_and_says_what_runs(workspace: Path) -> None:
    whole_way("luna", "Luna")
    whole_way("mei-lan", "Mei Lan")
    alive = api.create("train", {"dataset": str(paths.datasets_dir() / "luna")}, name="luna")
    fsio.write_json(alive.supervisor, {"started": 1.0, "child_pid": 1, "monotonic": 0.0})
    line = {"type": "progress", "stage": "train", "total": 100}
    fsio.write_jsonl(alive.metrics, [{**line, "t": t, "done": t} for t in range(1, 40)])
    lock = locks.FileLock(alive.lock)
    assert lock.acquire(timeout=1.0)
    try:
        app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=120).run()
        assert not app.exception
        box = next(s for s in app.sidebar.selectbox if s.label == "Persona")
        assert sorted(box.options) == ["Luna", "Mei Lan"]
        bar = app.sidebar.get("progress")[0]
        assert bar.proto.text == "Training Luna, run 2 · 1 min 1 s left"
        assert "Train · training" in [link.label for link in app.sidebar.get("page_link")]
        box.set_value(key_of("Mei Lan")).run()
        assert "Train · trained" in [link.label for link in app.sidebar.get("page_link")]
    finally:
        lock.release()


@pytest.mark.slow
def test_a_dataset_leads_to_train_with_itself_chosen(workspace_with_model: Path) -> None:
    dataset("luna")
    run("train", {"dataset": "elsewhere"})
    app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=120).run()
    app.query_params["view"] = "files"
    app = app.switch_page("pages/1_Dataset.py").run()
    assert not app.exception
    app.button(key="next_train_luna").click().run()
    assert "luna" in app.query_params["dataset"]
