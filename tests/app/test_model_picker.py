"""The one picker of models: what was found is offered, code of a folder is shown and trusted."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.models import trust
from tests.fakes import own_code, tiny_families


def page() -> AppTest:
    def script() -> None:
        import streamlit as st

        from pages._ui.shell.model_picker import pick

        st.text(f"picked {pick('Model', 'model')}")

    app = AppTest.from_function(script, default_timeout=60)
    app.session_state["language"] = "en"
    return app


@pytest.fixture(autouse=True)
def no_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pages._ui.shell import model_picker

    model_picker._models.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "none"))


def test_what_lies_in_the_workspace_is_offered(workspace: Path) -> None:
    tiny_families.save(workspace / "models" / "mine", "Qwen2.5")
    app = page().run()
    assert app.selectbox[0].options == ["SmolLM2-135M-Instruct · bundled", "mine · workspace"]
    assert app.text[0].value == "picked bundled"
    app.selectbox[0].select_index(1).run()
    assert app.text[0].value == f"picked {workspace / 'models' / 'mine'}"


def test_code_is_shown_and_trusted_on_the_page(tmp_path: Path) -> None:
    folder = own_code.save(tmp_path / "own")
    app = page()
    app.session_state["model"] = str(folder)
    app.run()
    assert app.text[0].value == "picked None"
    assert "Python code of its own" in app.warning[0].value
    assert any("class OwnForCausalLM" in block.value for block in app.code)
    app.checkbox[0].check().run()
    app.button[0].click().run()
    assert app.text[0].value == f"picked {folder}"
    assert trust.require(folder)
    (folder / "new.py").write_text("import os\n")
    app.run()
    assert app.text[0].value == "picked None"
    assert not app.checkbox[0].value


def test_a_hub_id_is_fetched_after_a_press_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("core.models.catalog.resolve", asked.append)
    app = page()
    app.session_state["model"] = "some/model"
    app.run()
    assert (app.text[0].value, asked) == ("picked None", [])
    app.button[0].click().run()
    assert (app.text[0].value, asked) == ("picked some/model", ["some/model"])
