"""Who may reach the pages, and what a page does when the disk is against it."""

from __future__ import annotations

import importlib
import socket
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit import config, net_util
from streamlit.testing.v1 import AppTest

from core.paths import REPO
from tests.fakes.streamlit_server import StreamlitServer

PAGES = ["1_Dataset", "2_Train", "3_Merge", "4_Compare"]


def a_page() -> None:
    import streamlit as st

    from pages._ui.shell.bootstrap import bootstrap

    bootstrap()
    st.write("inside")


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As .streamlit/config.toml serves it."""
    options = {"server.address": "127.0.0.1", "server.enableCORS": True}
    options["server.enableXsrfProtection"] = True
    before = {name: config.get_option(name) for name in options}
    for name, value in options.items():
        config.set_option(name, value)
    yield
    for name, value in before.items():
        config.set_option(name, value)


def shown() -> bool:
    app = AppTest.from_function(a_page, default_timeout=30).run()
    assert not app.exception
    return [m.value for m in app.markdown] == ["inside"]


def test_27_the_shipped_settings_are_served(served: None) -> None:
    settings = tomllib.loads((REPO / ".streamlit" / "config.toml").read_text())
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["server"]["allowedHosts"] == ["localhost", "127.0.0.1"]
    assert not {"enableCORS", "enableXsrfProtection"} & settings["server"].keys()
    assert shown()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("server.address", "0.0.0.0"),
        ("server.address", None),
        ("server.address", "192.0.2.7"),
        ("server.enableCORS", False),
        ("server.enableXsrfProtection", False),
    ],
)
def test_27_an_open_server_shows_nothing(
    served: None, option: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.set_option(option, value)
    assert not shown()
    monkeypatch.setenv("PERSONA_ALLOW_REMOTE", "1")
    assert shown()


def test_nobody_is_asked_for_our_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the start of the server on: before the first page is drawn, a stranger may knock."""
    monkeypatch.setattr(net_util, "_make_blocking_http_get", lambda *_a, **_k: pytest.fail("asked"))
    monkeypatch.setattr(net_util, "get_external_ip", net_util.get_external_ip)
    importlib.reload(importlib.import_module("streamlit_app"))
    assert net_util.get_external_ip() is None


def test_every_response_has_the_headers(server: int) -> None:
    for path in ("", "Train", "_stcore/health", "static/none.js"):
        try:
            answer = urllib.request.urlopen(f"http://127.0.0.1:{server}/{path}", timeout=20)
        except urllib.error.HTTPError as error:
            answer = error
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_a_workspace_that_cannot_be_written_is_told(
    served: None, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "runs").write_text("a file where a folder belongs")
    app = AppTest.from_function(a_page, default_timeout=30).run()
    assert not app.exception
    assert "cannot be used" in app.error[0].value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The app as `make run` starts it, on another port."""
    with StreamlitServer(tmp_path_factory.mktemp("server")) as started:
        yield started.port


def handshake(port: int, **headers: str) -> int:
    """Status of a WebSocket request with these headers."""
    request = (
        "GET /_stcore/stream HTTP/1.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        + "\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request.encode())
        return int(connection.recv(200).split()[1])


def test_27_origins_and_hosts(server: int) -> None:
    own = f"127.0.0.1:{server}"
    assert handshake(server, Host=own, Origin=f"http://{own}") == 101
    assert handshake(server, Host=own, Origin="http://evil.example") in (400, 403)
    assert handshake(server, Host="evil.example", Origin="http://evil.example") in (400, 403)


def test_27_it_listens_on_the_loopback_only(server: int) -> None:
    import psutil

    listening = {
        c.laddr.ip
        for c in psutil.net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == server
    }
    assert listening == {"127.0.0.1"}


@pytest.mark.parametrize("page", PAGES)
def test_28_a_page_that_is_the_first_hit(page: str, served: None, workspace: Path) -> None:
    """Bootstrap runs and the page draws, whichever address was the bookmark.

    Nothing runs before it; how it comes under the menu is seen by tests/e2e/test_navigation.py.
    """
    app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=120)
    app.switch_page(f"pages/{page}.py").run()
    assert not app.exception
    assert app.title[0].value == page.split("_", 1)[1]
    assert (workspace / "runs").is_dir()


@pytest.mark.parametrize("page", PAGES)
def test_27_an_open_server_shows_no_page(page: str, served: None) -> None:
    config.set_option("server.address", "0.0.0.0")
    app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=120)
    app.switch_page(f"pages/{page}.py").run()
    assert not app.exception
    assert len(app.error) == 1 and app.error[0].value.startswith("The server listens on ")
    assert not app.title and not app.button
