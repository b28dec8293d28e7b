"""The Compare page in a real browser: what a user could lose something by, at every width.

A tiny model answers in a real worker process; where a reply must stream slowly, a fake server does.
One app for the file.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core import fsio
from core.jobs.locks import DeviceLock
from core.models import bundled
from tests.fakes.streamlit_server import StreamlitServer
from tests.faults.support import until

pytestmark = pytest.mark.browser

playwright_api = pytest.importorskip("playwright.sync_api")
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
def home(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose bundled model is the tiny one, with a merged run of it."""
    home = tmp_path_factory.mktemp("home")
    base = home / "models" / "smollm2-135m-instruct"
    shutil.copytree(tiny_llama, base)
    fsio.write_json(base / "workbench.json", {"schema": 1, "format": bundled.FORMAT})
    merged = home / "runs" / RUN / "export" / "merged"
    merged.parent.mkdir(parents=True)
    merged.symlink_to(tiny_llama)
    return home


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """A running app."""
    with StreamlitServer(home) as server:
        yield server.url


class Compare:
    """The page, in the words of the tests."""

    def __init__(
        self, chromium: Any, address: str, width: int = 1440, scheme: str = "light"
    ) -> None:
        self.page = chromium.new_page(
            viewport={"width": width, "height": 900}, color_scheme=scheme, locale="en-US"
        )
        self.page.set_default_timeout(60_000)
        self.errors: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.main = self.page.get_by_test_id("stMainBlockContainer")
        self.open(f"{address}/Compare")

    def _console(self, message: Any) -> None:
        # Streamlit looks for its own server below the page's address first.
        if message.type == "error" and "/_stcore/" not in str(message.location):
            self.errors.append(message.text)

    def open(self, address: str) -> None:
        self.page.goto(address)
        self.ready()

    def ready(self) -> None:
        """Wait until the page is drawn and the script rests."""
        self.main.get_by_role("heading", name="Compare").wait_for()
        self.page.wait_for_timeout(300)  # until what was just pressed has reached the server
        self.page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for()

    def set_length(self, tokens: int) -> None:
        self.main.get_by_text("Settings", exact=True).click()
        box = self.main.get_by_label("Longest reply, tokens")
        box.fill(str(tokens))
        box.press("Enter")
        self.ready()
        self.main.get_by_text("Settings", exact=True).click()

    def choose(self, column: str, label: str) -> None:
        option = self.page.get_by_role("option", name=label)
        for _ in range(6):
            self.main.get_by_role("combobox", name=f"Column {column}").click()
            try:
                option.click(timeout=10_000)
                break
            except playwright_api.TimeoutError:  # a redraw on a slow machine closed the list
                self.page.keyboard.press("Escape")
        self.ready()

    @property
    def input(self) -> Any:
        return self.page.get_by_test_id("stChatInputTextArea")

    def ask(self, text: str) -> None:
        self.input.fill(text)
        self.input.press("Enter")

    def live(self, column: str) -> Any:
        return self.main.locator(f".st-key-live_{column}")

    def reply(self, turn: int, column: str) -> Any:
        return self.main.locator(f".st-key-reply_{turn}_{column}")

    def text_of(self, box: Any) -> str:
        return str(box.inner_text())


@pytest.fixture
def compare(chromium: Any, address: str) -> Iterator[Compare]:
    compare = Compare(chromium, address)
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


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (900, "light"), (1440, "dark")])
def test_nothing_said_is_lost(chromium: Any, address: str, width: int, scheme: str) -> None:
    """Asked by keyboard; then another page and back, a reload, versions; at each width."""
    compare = Compare(chromium, address, width, scheme)
    try:
        compare.set_length(12)
        compare.input.focus()
        compare.page.keyboard.type("Who are you?")
        compare.page.keyboard.press("Enter")
        compare.reply(0, "b").get_by_text("12 tokens").wait_for()
        compare.ready()
        _pinned(compare, width)
        chat = compare.page.url
        assert "chat=" in chat
        again = compare.reply(0, "b").get_by_role("button", name="Regenerate")
        again.focus()
        compare.page.keyboard.press("Enter")
        compare.reply(0, "b").get_by_text("2 / 2").wait_for()
        compare.ready()
        _in_one_row(compare)
        before = [compare.text_of(compare.reply(0, c)) for c in "ab"]
        assert "Merged: 20261124-194000-luna-1f2e" in before[1]
        address_of_page = chat.split("/Compare")[0]
        if width > 900:  # by the menu, which drops the address
            compare.page.get_by_role("link", name="Train").first.click()
            compare.page.get_by_role("heading", name="Train").wait_for()
            compare.page.get_by_role("link", name="Compare").first.click()
        else:
            compare.open(f"{address_of_page}/Compare?{chat.split('?')[1]}")
        compare.reply(0, "b").get_by_text("2 / 2").wait_for()
        compare.page.reload()
        compare.reply(0, "b").get_by_text("2 / 2").wait_for()
        compare.ready()
        assert [compare.text_of(compare.reply(0, c)) for c in "ab"] == before
        compare.reply(0, "b").get_by_role("button", name="Previous version").click()
        compare.reply(0, "b").get_by_text("1 / 2").wait_for()
        assert compare.errors == []
        if shots := os.environ.get("PERSONA_SCREENSHOTS"):
            compare.page.screenshot(path=f"{shots}/compare-{width}-{scheme}.png")
    finally:
        compare.page.close()


def _in_one_row(compare: Compare) -> None:
    """What can be done with a reply stands in one row, and with a question beside it."""
    row = [
        compare.reply(0, "b").get_by_role("button", name=name, exact=True).bounding_box()
        for name in ("Copy", "Regenerate", "Previous version", "Next version", "Exact prompt")
    ]
    middles = [box["y"] + box["height"] / 2 for box in row]
    assert max(middles) - min(middles) < 8, f"the actions wrap: {row}"
    said = compare.main.get_by_test_id("stChatMessage").get_by_text("Who are you?").bounding_box()
    edit = compare.main.get_by_role("button", name="Edit question").bounding_box()
    assert abs(edit["y"] + edit["height"] / 2 - said["y"] - said["height"] / 2) < 16


def _pinned(compare: Compare, width: int) -> None:
    """The input stands in the window, nothing is wider than it, replies do not overlap."""
    box = compare.input.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width
    assert 600 < box["y"] < 900, "at the bottom of the window, whatever was said"
    wide = compare.page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert wide <= 0, f"the page scrolls sideways at {width}"
    left, right = (compare.reply(0, c).bounding_box() for c in "ab")
    assert (
        left["x"] + left["width"] <= right["x"] + 1 or left["y"] + left["height"] <= right["y"] + 1
    ), f"replies overlap at {width}"
    for words in ("Formatted", "Differences", "Persona", "Raw"):
        shown = compare.main.get_by_role("radio", name=words)
        edge = (shown if shown.count() else compare.main.get_by_text(words).first).bounding_box()
        assert edge["x"] + edge["width"] <= width, f"{words} is cut at {width}"


def test_a_message_waits_for_a_busy_device(
    compare: Compare, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONA_HOME", str(home))
    lock = DeviceLock("train luna")
    unload = compare.main.get_by_role("button", name="Unload")
    while not lock.acquire(timeout=2):  # the chat of the test before may still have it
        if unload.count():
            unload.click()
        compare.ready()
    try:
        compare.ask("Do not lose me.")
        compare.main.get_by_text("train luna is using the device").wait_for()
        compare.page.reload()
        compare.main.get_by_text("train luna is using the device").wait_for()
        compare.main.get_by_role("button", name="Back to the input").click()
        playwright_api.expect(compare.input).to_have_value("Do not lose me.", timeout=60_000)
        compare.input.press("Enter")
        compare.main.get_by_text("train luna is using the device").wait_for()
    finally:
        lock.release()
    compare.reply(0, "b").get_by_text("tokens/s").wait_for()


def test_the_page_follows_the_stream_until_one_scrolls_up(
    compare: Compare, fake_server: FakeServer
) -> None:
    served(compare, "B", fake_server)
    compare.set_length(600)
    compare.ask("Go on for ever.")
    box = "document.querySelector('[data-testid=stAppScrollToBottomContainer]')"
    compare.live("b").get_by_text("word90").wait_for()
    rest = f"({box}.scrollHeight - {box}.clientHeight - {box}.scrollTop)"
    until(lambda: compare.page.evaluate(rest) < 80, 60)
    compare.page.mouse.move(700, 300)
    compare.page.mouse.wheel(0, -2000)
    compare.live("b").get_by_text("word150").wait_for()
    assert compare.page.evaluate(rest) > 80, "the reader has scrolled up"
    compare.page.reload()
    compare.live("b").get_by_text("tokens/s").wait_for()
    compare.page.keyboard.press("Escape")
    compare.reply(0, "b").get_by_text("stopped by you").wait_for()


def test_tabs_stand_in_the_address(compare: Compare) -> None:
    for name in ("Batch", "Scorecard"):
        compare.page.get_by_role("tab", name=name).click()
        compare.page.wait_for_url(f"**tab={name.lower()}*")
        compare.page.locator("[data-test-script-state=notRunning]").wait_for()
    compare.page.go_back()
    compare.main.get_by_label("One prompt a line").wait_for()
    compare.page.go_back()
    compare.input.wait_for()


def test_one_column_dies_and_the_other_goes_on(compare: Compare, fake_server: FakeServer) -> None:
    served(compare, "B", fake_server)
    compare.set_length(20)
    compare.ask("Explain in detail how a server dies.")
    compare.reply(0, "a").get_by_text("20 tokens").wait_for()
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
