"""The Compare page in a real browser, with the bundled model in a real worker process.

A tiny model would not do: it writes a whole reply before the browser has drawn its first words.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core import paths

pytestmark = [pytest.mark.browser, pytest.mark.slow]

playwright_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
RUN = "20261124-194000-luna-1f2e"
#: What a hostile model might write; nothing of it may act.
HOSTILE = (
    "<script>window.pwned=1</script><img src=x onerror='window.pwned=1'>\n"
    "![leak](http://127.0.0.1:{port}/leak.png?d=1) [![a](http://127.0.0.1:{port}/b.png)](x)\n"
    "` \n` ![x](http://127.0.0.1:{port}/c.png) `\n"
    "a ` | ![x](http://127.0.0.1:{port}/d.png) | ` b\n\n"
    "[click](javascript:window.pwned=1) :red[red?] :material/home: costs $5 and $6\n\n"
    "- item\n\n  ```\n  code\n![x](http://127.0.0.1:{port}/e.png)\n\n"
    "a line: " + "x" * 20_000 + "\n\nthe end ```js\nunclosed"
)


class FakeServer:
    """An OpenAI-compatible server whose behaviour the prompt chooses, and that counts images."""

    def __init__(self) -> None:
        self.images: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                return

            def do_GET(self) -> None:
                outer.images.append(self.path)
                self.send_response(404)
                self.end_headers()

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][-1]["content"]
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.end_headers()
                try:
                    outer.stream(self, prompt)
                except (BrokenPipeError, ConnectionResetError):
                    return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stream(self, handler: BaseHTTPRequestHandler, prompt: str) -> None:
        if "hostile" in prompt:
            self.send(handler, HOSTILE.replace("{port}", str(self.port)), "stop")
        elif "dies" in prompt:
            self.send(handler, "half of a rep")
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            for number in range(1000):
                self.send(handler, f"word{number} ")
                time.sleep(0.05)
            self.send(handler, "", "length")

    @staticmethod
    def send(handler: BaseHTTPRequestHandler, text: str, reason: str | None = None) -> None:
        chunk = {
            "id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m",
            "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}],
        }  # fmt: skip
        handler.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if reason:
            handler.wfile.write(b"data: [DONE]\n\n")
        handler.wfile.flush()


@pytest.fixture(scope="module")
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    yield server
    server.server.shutdown()


@pytest.fixture(scope="module")
def home(bundled_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with one "merged" run: the bundled model again."""
    home = tmp_path_factory.mktemp("home")
    merged = home / "runs" / RUN / "export" / "merged"
    for link in (home / "models" / bundled_model.name, merged):
        link.parent.mkdir(parents=True)
        link.symlink_to(bundled_model)
    return home


@pytest.fixture(scope="module")
def address(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running app."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    options = [
        f"--server.port={port}",
        "--server.address=127.0.0.1",
        "--server.headless=true",
        "--server.fileWatcherType=none",
        "--browser.gatherUsageStats=false",
    ]
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "streamlit_app.py", *options],
            cwd=paths.REPO,
            env={**os.environ, "PERSONA_HOME": str(home)},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/_stcore/health", timeout=1)
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, log.read_text()
                time.sleep(0.5)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_ARGS)
        yield browser
        browser.close()


class Compare:
    """The page, in the words of the tests."""

    def __init__(self, browser: Any, address: str, width: int = 1440) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 1000})
        self.page.set_default_timeout(60_000)
        self.page.goto(f"{address}/Compare")
        self.main = self.page.get_by_test_id("stMainBlockContainer")
        self.ready()

    def ready(self) -> None:
        """Wait until the page is drawn and the script rests."""
        self.main.get_by_role("heading", name="Compare").wait_for()
        self.main.get_by_test_id("stChatInput").wait_for()
        self.page.wait_for_function(
            "!document.querySelector('[data-testid=stStatusWidget]')", timeout=60_000
        )

    def set_length(self, tokens: int) -> None:
        self.main.get_by_text("Settings", exact=True).click()
        box = self.main.get_by_label("Longest reply, tokens")
        box.fill(str(tokens))
        box.press("Enter")
        self.ready()
        self.main.get_by_text("Settings", exact=True).click()

    def choose(self, column: str, label: str) -> None:
        self.main.get_by_role("combobox", name=f"Column {column}").click()
        self.page.get_by_role("option", name=label).click()
        self.ready()

    def ask(self, text: str) -> None:
        box = self.main.get_by_test_id("stChatInputTextArea")
        box.fill(text)
        box.press("Enter")

    def live(self, column: str) -> Any:
        return self.main.locator(f".st-key-live_{column}")

    def reply(self, turn: int, column: str) -> Any:
        return self.main.locator(f".st-key-reply_{turn}_{column}")

    def text_of(self, box: Any) -> str:
        return str(box.inner_text())


@pytest.fixture
def compare(browser: Any, address: str) -> Iterator[Compare]:
    compare = Compare(browser, address)
    yield compare
    compare.page.close()


def served(compare: Compare, column: str, server: FakeServer) -> None:
    """Put the fake server into a column."""
    compare.choose(column, "OpenAI-compatible server")
    for label, value in (
        ("Server address", f"http://127.0.0.1:{server.port}/v1"),
        ("Model name on the server", "fake"),
    ):
        box = compare.main.get_by_label(label)
        box.fill(value)
        box.press("Enter")
        compare.ready()


def test_both_columns_stream_at_the_same_time_and_survive_a_reload(compare: Compare) -> None:
    compare.set_length(100)
    compare.ask("Write a long story about a fox.")
    for column in "ab":
        compare.live(column).get_by_text("tokens").first.wait_for()
    first = [compare.text_of(compare.live(c)) for c in "ab"]
    time.sleep(0.7)
    second = [compare.text_of(compare.live(c)) for c in "ab"]
    assert all(len(b) > len(a) for a, b in zip(first, second, strict=True)), "both must grow"
    for column in "ab":
        compare.reply(0, column).get_by_text("cut at the length limit").wait_for()
    before = [compare.text_of(compare.reply(0, c)) for c in "ab"]
    assert "chat=" in compare.page.url
    compare.page.reload()
    compare.ready()
    compare.reply(0, "b").get_by_text("cut at the length limit").wait_for()
    assert [compare.text_of(compare.reply(0, c)) for c in "ab"] == before


def test_stop_keeps_the_partial_text(compare: Compare) -> None:
    compare.set_length(600)
    compare.ask("Write a very long story about the sea.")
    compare.live("a").get_by_text("tokens/s").wait_for()
    compare.main.get_by_role("button", name="Stop").click()
    for column in "ab":
        compare.reply(0, column).get_by_text("stopped by you").wait_for()
        assert len(compare.text_of(compare.reply(0, column))) > 50


def test_a_reload_in_the_middle_goes_on_drawing(compare: Compare) -> None:
    compare.set_length(600)
    compare.ask("Write a very long story about a town.")
    compare.live("b").get_by_text("tokens/s").wait_for()
    compare.page.reload()
    compare.live("b").get_by_text("tokens/s").wait_for()
    compare.main.get_by_role("button", name="Stop").click()
    compare.reply(0, "a").get_by_text("stopped by you").wait_for()


def test_one_side_dies_and_the_other_goes_on(compare: Compare, fake_server: FakeServer) -> None:
    served(compare, "B", fake_server)
    compare.set_length(20)
    compare.ask("Explain in detail how a server dies.")
    compare.reply(0, "a").get_by_text("cut at the length limit").wait_for()
    broken = compare.reply(0, "b")
    broken.get_by_text("broke off in the middle of the reply").wait_for()
    assert "half of a rep" in compare.text_of(broken)


def test_hostile_text_does_nothing(compare: Compare, fake_server: FakeServer) -> None:
    served(compare, "B", fake_server)
    compare.set_length(200)  # so many that the reply is not cut for its length
    before = len(fake_server.images)
    asked: list[str] = []
    compare.page.on("request", lambda request: asked.append(request.url))
    compare.ask("Be hostile.")
    box = compare.reply(0, "b")
    box.get_by_text("ended by itself").wait_for()
    assert compare.page.evaluate("window.pwned") is None
    assert fake_server.images[before:] == []
    assert [u for u in asked if f":{fake_server.port}" in u] == []
    assert box.locator("img, script, .katex").count() == 0
    assert box.locator("a[href^='javascript']").count() == 0
    text = compare.text_of(box)
    assert ":red[red?]" in text.replace("\u2060", "")
    assert "$5 and $6" in text
    # The page still answers: another view of the same reply is drawn at once.
    start = time.monotonic()
    compare.main.get_by_test_id("stButtonGroup").get_by_text("Raw").first.click()
    box.get_by_test_id("stCode").first.wait_for()
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("width", [390, 900, 1440])
def test_nothing_overlaps(browser: Any, address: str, width: int) -> None:
    compare = Compare(browser, address, width)
    try:
        compare.set_length(16)
        compare.ask("Write a long story about a bridge.")
        compare.reply(0, "b").get_by_text("cut at the length limit").wait_for()
        compare.ready()
        boxes = [compare.reply(0, c).bounding_box() for c in "ab"]
        assert all(boxes)
        left, right = boxes
        apart = (
            left["x"] + left["width"] <= right["x"] + 1
            or left["y"] + left["height"] <= right["y"] + 1
        )
        assert apart, f"replies overlap at {width}: {boxes}"
        assert left["x"] >= 0
        assert max(b["x"] + b["width"] for b in boxes) <= width
        wide = compare.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        assert wide <= 0, f"the page scrolls sideways at {width}"
        if shots := os.environ.get("PERSONA_SCREENSHOTS"):
            compare.page.screenshot(path=f"{shots}/compare-{width}.png", full_page=True)
    finally:
        compare.page.close()
