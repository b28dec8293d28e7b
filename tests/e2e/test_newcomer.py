"""From an empty workspace to a merged, scored model and an answer from it, as a newcomer goes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.models import bundled
from core.pipeline import projects
from tests.fakes.chromium import screenshot
from tests.fakes.streamlit_server import StreamlitServer
from tests.faults.support import until

# Six processes import the training libraries one after the other, which takes minutes on a loaded
# machine: not part of `make test`.
pytestmark = [pytest.mark.browser, pytest.mark.soak, pytest.mark.timeout(900)]

#: The app, with a preset that a tiny model finishes in a minute: a random model cannot talk, so
#: there is no rehearsal, and no verdict but that there is too little evidence.
SMALL = """
import sys
from core.pipeline import presets
presets.PRESETS["good"] = presets.Preset(
    "good", 12, "smoke",
    dataset={"rehearsal_ratio": 0.0, "near_miss_ratio": 0.0, "multi_turn": 0.0},
    training={"steps": 2, "checkpoint_every": 2, "warmup_steps": 1, "lora_r": 4},
)
from streamlit.web.cli import main
sys.exit(main())
"""
#: ms; a minute on a quiet machine.
_RUN = 700_000
#: Clicks after the name and the maker are typed; sending a message counts as one.
MOST = 6


class Newcomer:
    """Somebody at the page who counts what they do."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.clicks = 0

    def press(self, name: str) -> None:
        """A button of the page."""
        main = self.page.get_by_test_id("stMainBlockContainer")
        main.get_by_role("button", name=name, exact=True).click()
        self.clicks += 1

    def say(self, text: str) -> None:
        """A message into the box at the bottom."""
        box = self.page.get_by_test_id("stChatInputTextArea")
        box.fill(text)
        box.press("Enter")
        self.clicks += 1


def tiny_as_bundled(home: Path, tiny: Path) -> None:
    """'bundled' is the tiny model in this workspace, for the server and for its jobs."""
    place = home / "models" / bundled.folder().name
    shutil.copytree(tiny, place)
    fsio.write_json(place / "workbench.json", {"schema": 1, "format": bundled.FORMAT})
    assert bundled.ensure() == place


def test_from_an_empty_workspace_to_an_answer(
    workspace: Path, tiny_llama: Path, chromium: Any
) -> None:
    tiny_as_bundled(workspace, tiny_llama)
    with StreamlitServer(workspace, program=("-c", SMALL)) as server:
        page = chromium.new_page(viewport={"width": 1440, "height": 1000})
        page.set_default_timeout(120_000)
        faults: list[str] = []
        page.on("console", lambda m: faults.append(m.text) if m.type == "error" else None)
        page.goto(server.url)
        page.get_by_label("Name", exact=True).fill("Mei Lan")
        page.get_by_label("Made by", exact=True).fill("Harbour Works")
        newcomer = Newcomer(page)
        newcomer.press("Run all")
        page.get_by_role("heading", name="Mei Lan").wait_for()
        until(lambda: "Making Mei Lan" in page.title(), 120)
        screenshot(page, "newcomer-running")
        page.reload()  # a closed tab loses nothing
        page.get_by_role("button", name="Talk to it").wait_for(timeout=_RUN)
        screenshot(page, "newcomer-done")
        newcomer.press("Talk to it")
        page.get_by_role("heading", name="Compare").wait_for()
        assert "merge=" in page.url
        newcomer.say("Who are you?")
        page.get_by_role("button", name="Copy").nth(1).wait_for()  # both have answered
        screenshot(page, "newcomer-answer")
        assert newcomer.clicks <= MOST
        sidebar = page.get_by_test_id("stSidebar")
        assert sidebar.get_by_label("Persona", exact=True).input_value() == "Mei Lan"
        sidebar.get_by_text("Not enough evidence").wait_for()
        assert faults == []
    (persona,) = projects.overview().projects
    assert {step.standing for step in persona.steps} == {"done"}
