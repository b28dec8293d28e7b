"""The content security policy: nothing is fetched from elsewhere, and everything of ours works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.streamlit_server import StreamlitServer

pytestmark = pytest.mark.browser

#: A page that forgot to take a stranger's text for text, and all the parts that our pages use.
#: ``{place}`` is the address of a server that must hear nothing.
APP = """
import pandas as pd
import streamlit as st
from starlette.middleware import Middleware
from pages._ui.shell.headers import SafeHeaders
if __name__ == "__main__":
    st.markdown("![a]({place}/markdown.png) [![b]({place}/link.png)](x)")
    st.markdown("<img src={place}/html.png>", unsafe_allow_html=True)
    st.html("<style>body {{ background: url({place}/style.png) }}</style>")
    st.html("<script>fetch('{place}/script')</script>", unsafe_allow_javascript=True)
    st.html("<iframe src={place}/frame></iframe><video src={place}/video></video>")
    from core.jobs.metrics import Series
    from pages._ui.train.charts import loss_chart, small_charts
    more = dict(lr=1e-3, tokens_per_s=9.0)
    points = [dict(step=i, loss=3 / i, smooth=3 / i, **more) for i in range(1, 50)]
    loss_chart({{"run": Series(points=points)}}, log_scale=True)
    small_charts({{"run": Series(points=points)}})
    st.dataframe(pd.DataFrame({{"a": [1, 2]}}))
    st.data_editor(pd.DataFrame({{"a": ["x", "y"]}}), num_rows="dynamic")
    st.download_button("Get", b"bytes of a file", "f.txt")
    st.write("got", st.file_uploader("Give"))
    st.code("print(1)", language="python")
    st.button("Star", icon=":material/star:")
    st.text("the end")
else:
    app = st.App(__file__, middleware=[Middleware(SafeHeaders)])
"""


@pytest.fixture(scope="module")
def place() -> Iterator[tuple[str, list[str]]]:
    """A server of a stranger, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


@pytest.fixture(scope="module")
def address(
    place: tuple[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "page.py").write_text(APP.format(place=place[0]))
    with StreamlitServer(folder, script=folder / "page.py") as server:
        yield server.url


def test_a_page_fetches_nothing_from_elsewhere_and_works(
    address: str, place: tuple[str, list[str]], tmp_path: Path, chromium: Any
) -> None:
    refused, errors = [], []
    page = chromium.new_page()
    page.set_default_timeout(90_000)
    page.on("console", lambda m: refused.append(m.text) if "Security Policy" in m.text else 0)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    page.get_by_text("the end").wait_for()
    page.locator("[data-testid=stVegaLiteChart] :is(canvas, svg)").nth(2).wait_for()
    page.locator("[data-testid=stDataFrame] canvas").nth(1).wait_for()
    page.locator("[data-testid=stVegaLiteChart]").first.hover()
    with page.expect_download() as download:
        page.get_by_role("button", name="Get").click()
    download.value.save_as(tmp_path / "f.txt")
    (tmp_path / "up.txt").write_text("x")
    page.locator("input[type=file]").set_input_files(tmp_path / "up.txt")
    page.get_by_text("up.txt").first.wait_for()
    page.get_by_text("the end").wait_for()
    assert (tmp_path / "f.txt").read_text() == "bytes of a file"
    assert place[1] == [], "the stranger's server was asked"
    assert errors == []
    # What was refused is the stranger's, and some of it was: the page had tried.
    assert any("markdown.png" in text for text in refused), refused
    assert all(place[0] in text or "inline" in text for text in refused), refused
