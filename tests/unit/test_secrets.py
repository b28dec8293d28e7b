"""Keys and logins reach no file, no page and no terminal, however a server gives them back."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import pytest

from core import paths
from core.chat import transcripts
from core.chat.columns import Column
from core.chat.dialogue import Reply, Turn
from core.console import TextOnly
from core.data.ultrachat.backends import KEY_VARIABLE, URL_VARIABLE, Call, EndpointBackend
from core.errors import UserError, redacted
from core.inference.settings import GenerationSettings
from core.inference.stream import column_error
from core.jobs.child import _WithoutSecrets
from tests.fakes.openai_server import Fault, serve

KEY = "sk-canary/0123456789+abcdef"


def holding(folder: Path, text: str) -> list[Path]:
    """Files with a text, or with the half of it, in them."""
    half = text[: len(text) // 2].encode()
    return [p for p in folder.rglob("*") if p.is_file() and half in p.read_bytes()]


@pytest.mark.parametrize(
    "name",
    [
        "X_KEY", "HF_TOKEN", "DB_PASS", "GITHUB_PAT", "REGISTRY_AUTH", "MYSQL_PWD", "JWT",
        "X_CREDS", "AWS_SESSION", "REGISTRY_LOGIN",
        "AZURE_STORAGE_CONNECTION_STRING", "SLACK_WEBHOOK_URL", "SESSION_COOKIE", "SENTRY_DSN",
    ],
)  # fmt: skip
def test_what_is_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, KEY)
    assert redacted(f"a {KEY} b") == "a *** b"


@pytest.mark.parametrize(("name", "value"), [("DESKTOP_SESSION", "gnome-classic"), ("LOGIN", "x")])
def test_what_is_none(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    assert redacted(f"a {value} b") == f"a {value} b"


@pytest.mark.parametrize("value", ["ghp_0123456789", "sk-0123456789", "eyJhbGciOiJIUzI1NiJ9.e30"])
def test_a_key_is_told_by_its_beginning(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_ACCOUNT", value)
    assert redacted(f"a {value} b") == "a *** b"


def test_in_two_bytes_a_character(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a reader of UTF-8 or Latin-1 sees UTF-16, and as that is printed and kept."""
    monkeypatch.setenv("X_KEY", KEY)
    for encoding in ("utf-16-le", "utf-16-be"):
        body = f"no: {KEY}!".encode(encoding)
        read = body.decode("latin-1")
        for text in (read, repr(body), json.dumps(read), quote(body)):
            assert "***" in redacted(text)
            assert "canary" not in re.sub(r"\0|\\x00|\\u0000|%00", "", redacted(text)), text


def test_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "secret-12")  # the beginning of the other, and listed first
    monkeypatch.setenv("B_KEY", 'secret-12"\\34/5')
    text = json.dumps({"key": 'secret-12"\\34/5'}) + " ?k=secret-12%22%5C34%2F5 secret-12 "
    assert redacted(text) == '{"key": "***"} ?k=*** *** '


@pytest.mark.parametrize(
    "written",
    [
        "sk-a/b%2Bc%3DD%20%26%3Cx%3E", "sk-a%2Fb%2Bc%3DD+%26%3Cx%3E",
        "sk-a%2fb%2bc%3dD%20%26%3cx%3e",
        "sk-a/b+c=D &amp;&lt;x&gt;", "sk-a\\/b+c=D &<x>", "sk-a/b+c=D \\u0026\\u003cx\\u003e",
        "c2stYS9iK2M9RCAmPHg+",
    ],
)  # fmt: skip
def test_as_others_write_it(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an address, in HTML, in JSON of PHP and Go, in a header."""
    monkeypatch.setenv("A_KEY", "sk-a/b+c=D &<x>")
    assert redacted(f"401: {written}!") == "401: ***!"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("proxy http://me:pw@host:3128/ refused", "proxy http://***@host:3128/ refused"),
        ("clone https://ghp_abc@github.com/x", "clone https://***@github.com/x"),
        ("http://a.b/c?d=e@f me@a.b", "http://a.b/c?d=e@f me@a.b"),
    ],
)
def test_logins_in_addresses(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert UserError("x", text).why == shown


def test_a_stream_hands_nothing_past_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_KEY", KEY)
    out = io.StringIO()
    _WithoutSecrets(out).writelines([f"a {KEY}\n", "b\n"])
    TextOnly(out).writelines(["\x1b]52;c;x\x07c\n"])
    assert out.getvalue() == "a ***\nb\nc\n"


def test_29_a_simulation_whose_server_echoes_the_key(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way: command line, supervisor, job, and everything that they write and print."""
    echo = Fault(401, json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}))
    with serve(lambda *_: echo) as server:
        command = [sys.executable, "-m", "core", "dataset", "simulate", "talks"]
        command += ["--assistant-model", "endpoint:tiny", "--dialogues", "1"]
        env = {**os.environ, URL_VARIABLE: server.url, KEY_VARIABLE: KEY}
        done = subprocess.run(
            command, cwd=paths.REPO, env=env, capture_output=True, text=True, timeout=200
        )
        assert server.keys and server.keys[0] == f"Bearer {KEY}"
    assert done.returncode != 0
    told = done.stdout + done.stderr
    assert "Incorrect API key" in told and KEY[:12] not in told
    logs = list(workspace.glob("runs/*/log.txt"))
    assert logs and "Incorrect API key provided: ***" in logs[0].read_text()
    assert holding(workspace, KEY) == []


@pytest.mark.parametrize("lead", range(270, 300, 9))
def test_half_a_key_is_not_left_where_a_message_is_cut(
    lead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    echo = Fault(400, json.dumps({"error": {"message": "x" * (lead - 60) + KEY}}))
    with serve(lambda *_: echo) as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        (fault,) = EndpointBackend("tiny", max_retries=0).complete(
            [Call([{"role": "user", "content": "a"}], 4)], 0
        )
    assert isinstance(fault, UserError)
    assert KEY[:6] not in str(fault)


def test_a_reply_that_is_the_key_makes_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(lambda *_: f"Your key is {KEY}.") as server:
        monkeypatch.setenv(URL_VARIABLE, server.url)
        monkeypatch.setenv(KEY_VARIABLE, KEY)
        (answer,) = EndpointBackend("tiny").complete(
            [Call([{"role": "user", "content": "a"}], 4)], 0
        )
    assert cast(Any, answer).text == "Your key is ***."


def test_a_conversation_keeps_no_key(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUNA_KEY", KEY)
    column = Column("a", "endpoint", "S", "m", base_url="http://h/v1", key_env="LUNA_KEY")
    chat = transcripts.create([column])
    reply = Reply(f"you are {KEY}", error=column_error(ValueError(f"{'x' * 590}{KEY}")))
    transcripts.add_turn(chat, Turn("who am I?", GenerationSettings(), {"a": reply}))
    assert transcripts.read(chat.id).turns[0].replies["a"].text == "you are ***"
    assert holding(workspace, KEY) == []


@pytest.mark.parametrize("url", ["http://me:pw@h/v1", "http://tok@h/v1", "https://h/v1?api_key=x"])
def test_an_address_with_a_login_is_no_column(url: str) -> None:
    with pytest.raises(UserError, match="holds a login or a query"):
        Column("a", "endpoint", "S", "m", base_url=url)
    Column("a", "endpoint", "S", "m", base_url="http://h:8000/v1", key_env="X")  # as the fix says
