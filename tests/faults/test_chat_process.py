"""The chat process from its server's side: unloaded, stopped, killed inside a line. Case 9."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.chat import client, protocol
from core.chat.client import WorkerClient
from core.chat.columns import Column
from core.errors import UserError
from core.inference.settings import GREEDY
from core.jobs.locks import device_holder
from pages._ui.compare import state
from tests.faults.support import until

COLUMN = Column("a", "base", "Base", "bundled")
#: The real process with the real device lock; only the model is missing.
WITHOUT_A_MODEL = """
from core.chat import worker
class Engine:
    def load(self, columns): return {}
    def memory(self): return {"process": 1}
    def cancel(self, column=None): pass
worker.Worker._ready = lambda self: setattr(self, "_engine", Engine()) or self._engine
worker.main()
"""
TORN = """
import sys
sys.stdin.readline()
sys.stdout.write('{"type": "load')
"""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The program that the client starts: change it before the first request."""
    program = [WITHOUT_A_MODEL]
    real = subprocess.Popen

    def popen(argv: list[str], **more: Any) -> Any:
        chat = argv[1:] == ["-m", "core.chat.worker"]
        return real([sys.executable, "-c", program[0]] if chat else argv, **more)

    monkeypatch.setattr(client.subprocess, "Popen", popen)
    yield program


@pytest.fixture
def chat(started: list[str]) -> Iterator[WorkerClient]:
    worker = WorkerClient()
    yield worker
    worker.close()


def _page() -> None:
    from core.chat.columns import Column
    from pages._ui.compare.columns import _loaded

    _loaded([Column("a", "base", "Base", "bundled")])


def test_9_unload_frees_the_device(
    chat: WorkerClient, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workspace / "runs").mkdir()
    chat.load([COLUMN])
    holder = device_holder()
    assert holder is not None and holder.what == "chat"
    monkeypatch.setattr(state, "worker", lambda: chat)
    app = AppTest.from_function(_page, default_timeout=60).run()
    assert not app.exception
    app.button(key="compare_unload").click().run()
    assert not app.exception
    assert device_holder() is None
    assert not chat.alive


def test_a_stopped_process_can_be_unloaded_while_it_is_written_to(
    chat: WorkerClient, workspace: Path
) -> None:
    """A pipe takes 64 kB; a longer message waits for a reader that sleeps."""
    (workspace / "runs").mkdir()
    chat.load([COLUMN])
    process = chat._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    talk = {"a": [{"role": "user", "content": "x" * 10**6}]}
    ended: list[Exception] = []

    def ask() -> None:
        try:
            chat.call(protocol.Ask(talk, GREEDY, op="preview"), protocol.Planned)  # type: ignore[arg-type]
        except UserError as error:
            ended.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    time.sleep(0.5)
    closing = threading.Thread(target=chat.close, daemon=True)
    closing.start()
    closing.join(timeout=20)
    asking.join(timeout=20)
    assert not closing.is_alive() and not asking.is_alive()
    assert len(ended) == 1
    assert device_holder() is None


def test_one_killed_inside_a_line_ends_the_wait(started: list[str], workspace: Path) -> None:
    """As the out-of-memory killer does; the page waited for ever."""
    started[0] = TORN
    worker, ended = WorkerClient(), []

    def ask() -> None:
        try:
            worker.load([COLUMN])
        except UserError as error:
            ended.append(error.what)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    until(lambda: ended, 30)
    assert ended == ["the chat process ended"]
