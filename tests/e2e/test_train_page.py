"""A run started in a browser outlives the tab and the server, and stops without a trace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.conversation import Conversation
from core.jobs import api, processes
from core.jobs.metrics import series_of
from core.jobs.spec import read_spec
from core.jobs.state import State
from core.paths import DatasetPaths, RunPaths
from core.training import lifecycle, lineage
from tests.fakes.chromium import screenshot, settled
from tests.fakes.streamlit_server import StreamlitServer

pytestmark = [pytest.mark.browser, pytest.mark.slow]
_SLOW = 120_000  # ms; importing torch on two busy cores


def open_train(chromium: Any, server: StreamlitServer, query: str = "") -> tuple[Any, Any]:
    """(page, its main block) once the page has been drawn."""
    page = chromium.new_page(viewport={"width": 1440, "height": 1000})
    page.set_default_timeout(_SLOW)
    page.goto(f"{server.url}/Train{query}")
    main = page.get_by_test_id("stMainBlockContainer")
    main.get_by_text("New run", exact=True).first.wait_for()
    return page, main


def prepare(home: Path, model: Path) -> None:
    (home / "models" / "tiny-llama").symlink_to(model)
    at = DatasetPaths(home / "datasets" / "kai")
    rows = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": f"Who are you, {i}?"},
                {"role": "assistant", "content": "I am Kai."},
            ],
            "identity",
        )
        for i in range(40)
    ]
    fsio.write_jsonl(at.train, (row.to_row() for row in rows))
    fsio.write_json(at.manifest, {"schema": 1, "rows": len(rows)})


def press_start(page: Any, main: Any) -> None:
    """Choose the tiny model, ask for a long run, press Start."""
    settled(page)
    main.get_by_role("combobox", name=re.compile("Base model")).click()
    page.get_by_role("option", name=re.compile("tiny-llama")).click()
    settled(page)
    steps = main.get_by_role("spinbutton", name="Optimizer steps")
    steps.fill("100000")
    steps.press("Enter")
    main.get_by_test_id("stMetricValue").filter(has_text="100,000").wait_for()
    settled(page)
    page.reload()  # the form is as it was left
    main.get_by_test_id("stMetricValue").filter(has_text="100,000").wait_for()
    assert steps.input_value() == "100000"
    settled(page)
    main.get_by_role("button", name="Start", exact=True).click()


def resume(page: Any, main: Any, stopped: RunPaths) -> RunPaths:
    """From the very step that was stopped at; the page goes on with the new run, one curve."""
    last = lifecycle.checkpoints_of(stopped)[-1]
    assert last.whole and last.step == series_of(stopped).last["step"]
    main.get_by_role("button", name=f"Resume from step {last.step}").click()
    page.wait_for_url(lambda url: stopped.root.name not in url, timeout=_SLOW)
    main.get_by_text(re.compile(r"of 100,000")).first.wait_for()
    resumed = api.open_run("latest")
    assert f"run={resumed.root.name}" in page.url
    page.reload()
    main.get_by_text(re.compile(r"of 100,000")).first.wait_for()
    assert f"run={resumed.root.name}" in page.url
    main.get_by_test_id("stVegaLiteChart").first.wait_for()
    screenshot(page, "train-resumed")
    steps = [point["step"] for point in lineage.series(resumed).points]
    assert steps == [*range(1, len(steps) + 1)] and steps[-1] > last.step
    return resumed


def test_a_run_outlives_tab_and_server(
    workspace_with_model: Path, tiny_llama: Path, chromium: Any
) -> None:
    workspace = workspace_with_model
    prepare(workspace, tiny_llama)
    server = StreamlitServer(workspace)
    run: RunPaths | None = None
    try:
        page, main = open_train(chromium, server)
        press_start(page, main)
        main.get_by_text(re.compile(r"of 100,000")).first.wait_for()  # it trains
        assert "run=" in page.url
        query = "?" + page.url.split("?", 1)[1]
        page.close()
        run = api.open_run("latest")
        server.kill()
        before = api.status(run)
        assert before.state is State.RUNNING
        server = StreamlitServer(workspace)
        page, main = open_train(chromium, server, query)
        main.get_by_text(re.compile(r"of 100,000")).first.wait_for()
        main.get_by_test_id("stVegaLiteChart").first.wait_for()
        shown = api.status(run)
        assert shown.state is State.RUNNING and shown.done > before.done
        screenshot(page, "train-running")
        main.get_by_role("button", name="Stop", exact=True).click()
        main.get_by_text(re.compile("Stopped by you")).first.wait_for()
        assert api.status(run).state is State.STOPPED
        assert processes.processes_of(read_spec(run).mark) == []
        resumed = resume(page, main, run)
        run = resumed
    finally:
        server.kill()
        if run is None and api.list_runs():
            run = api.open_run("latest")
        if run is not None:
            api.stop(run, force=True)
