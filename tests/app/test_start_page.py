"""The first page: what is asked for, what is said of it, and what is listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.jobs import api
from core.paths import REPO, RunPaths
from tests.unit.test_projects import whole_way


def page(**query: str) -> AppTest:
    app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=120)
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception, [e.value for e in app.exception]
    return app


def said(app: AppTest) -> str:
    kinds = ("title", "subheader", "caption", "markdown", "warning", "error", "success")
    return "\n".join(e.value for kind in kinds for e in getattr(app, kind))


def test_an_empty_name_is_said_under_its_field_and_the_page_stays(workspace: Path) -> None:
    app = page()
    app.button(key="start_run").click().run()
    assert "Give it a name." in said(app)
    assert "Say who made it." in said(app)
    assert not app.error
    assert app.button(key="start_run") is not None
    assert api.list_runs() == []


def test_what_is_typed_stays_after_a_reload_and_is_on_the_dataset_page(workspace: Path) -> None:
    app = page()
    app.text_input(key="start_name").set_value("Nora").run()
    app.text_input(key="start_maker").set_value("Hill Works").run()
    app.button_group(key="start_preset").set_value("quick").run()
    again = page()  # another session, as a reload is
    assert again.text_input(key="start_name").value == "Nora"
    assert again.text_input(key="start_maker").value == "Hill Works"
    assert again.button_group(key="start_preset").value == "quick"
    form = AppTest.from_file(str(REPO / "pages" / "1_Dataset.py"), default_timeout=120).run()
    assert form.text_input(key="own-name-en").value == "Nora"
    form.text_input(key="own-name-en").set_value("Ada").run()
    assert form.run().text_input(key="own-name-en").value == "Ada"


def test_who_was_made_is_not_typed_into_the_next_form(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "launch", lambda spec, name: RunPaths(workspace / "runs" / name))
    app = page()
    app.text_input(key="start_name").set_value("Nora")
    app.text_input(key="start_maker").set_value("Hill Works")
    app.button(key="start_run").click().run()
    assert page(new="1").text_input(key="start_name").value == ""


def test_each_preset_tells_its_time(workspace: Path) -> None:
    labels = page().button_group(key="start_preset").options
    assert [o.split(" ")[0] for o in labels] == ["Quick", "Good", "Thorough"]
    assert all("about" in o and "min" in o for o in labels)


def test_personas_are_listed_with_where_they_stand(workspace: Path) -> None:
    whole_way("mei-lan", "Mei Lan", "OVERFIT")
    app = page()
    assert "**Mei Lan**" in said(app)
    assert "Learned too much" in said(app)
    labels = [link.label for link in app.sidebar.get("page_link")]
    assert [label.split(" · ")[0] for label in labels] == [
        "Start", "Dataset", "Train", "Merge", "Compare",
    ]  # fmt: skip
    assert labels[1:] == [
        "Dataset · built", "Train · trained", "Merge · merged", "Compare · Learned too much",
    ]  # fmt: skip


def test_a_run_that_is_not_there_is_said(workspace: Path) -> None:
    assert "There is no run `nonsense` here." in said(page(all="nonsense"))


def test_a_workspace_from_elsewhere_says_how_to_open_it(workspace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "runs").mkdir(parents=True)
    (other / "datasets").mkdir()
    app = page()
    app.text_input(key="start_folder").set_value(str(other)).run()
    app.button(key="start_open_folder").click().run()
    assert f"PERSONA_HOME={other} make run" in said(app).replace("\\", "")
