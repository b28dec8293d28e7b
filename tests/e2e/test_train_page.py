"""A run started in a browser outlives the tab and the server, and stops without a trace."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.conversation import Conversation
from core.jobs import api, processes
from core.jobs.metrics import series_of
from core.jobs.spec import read_spec
from core.jobs.state import State
from core.paths import REPO, DatasetPaths, RunPaths
from core.training import lifecycle, lineage

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
#: No request of the browser's own leaves the machine.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
_SLOW = 120_000  # ms; importing torch on two busy cores


class Server:
    """Streamlit in a process group of its own, its output in a file (a pipe could fill)."""

    def __init__(self, home: Path, *program: str) -> None:
        """``program``: what Python runs in place of ``-m streamlit``."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = (home / "server.log").open("ab")
        self.process = subprocess.Popen(
            [
                sys.executable,
                *(program or ("-m", "streamlit")),
                "run",
                "streamlit_app.py",
                f"--server.port={self.port}",
                "--server.address=127.0.0.1",
                "--server.headless=true",
                "--server.fileWatcherType=none",
            ],
            cwd=REPO,
            env={**os.environ, "PERSONA_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=1):
                    return
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """As a crash does: no chance to clean up."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.log.close()


@contextmanager
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        try:
            yield chromium
        except BaseException:
            for page in (p for context in chromium.contexts for p in context.pages):
                screenshot(page, "train-failed")
            raise
        finally:
            chromium.close()


def screenshot(page: Any, name: str) -> None:
    """Kept where PERSONA_SCREENSHOTS says; nowhere if it does not."""
    if folder := os.environ.get("PERSONA_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def open_train(chromium: Any, server: Server, query: str = "") -> tuple[Any, Any]:
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


def settled(page: Any) -> None:
    """Wait until the script has run to its end, so that nothing drawn is stale."""
    page.wait_for_timeout(500)  # what was pressed has to reach the server first
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()


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


def test_a_run_outlives_tab_and_server(workspace_with_model: Path, tiny_llama: Path) -> None:
    workspace = workspace_with_model
    prepare(workspace, tiny_llama)
    server = Server(workspace)
    run: RunPaths | None = None
    try:
        with browser() as chromium:
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
            server = Server(workspace)
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
