"""The server's end of the chat worker: starts it, sends requests, hands out its events."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from core import paths
from core.chat import protocol
from core.chat.columns import Column
from core.chat.protocol import Answer, Conversations, Failed, Told
from core.errors import ErrorRecord, UserError
from core.inference.events import Event
from core.inference.settings import GenerationSettings
from core.jobs.journal import tail

#: Takes the events of a request's columns; ``Failed`` is the last one if the whole came to nothing.
OnEvent = Callable[[Event | Failed], None]
_OnMessage = Callable[[Answer | Told], None]
_A = TypeVar("_A", bound=Answer)
#: What the worker may see of the environment; secrets of the server stay behind. A gated hub model
#: is fetched with the login that ``hf auth login`` stored.
_ENVIRONMENT = (
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH", "PERSONA_HOME",
    "PERSONA_CHAT_IDLE_S", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT",
    "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT",
)  # fmt: skip


class WorkerClient:
    """One worker process for the whole server, started when it is first needed.

    Thread-safe. Events arrive on a reader thread; callbacks must be short.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _OnMessage] = {}
        self.columns: list[Column] = []
        self.errors: dict[str, ErrorRecord] = {}
        self.memory: dict[str, int] = {}

    @property
    def alive(self) -> bool:
        """Whether a worker runs (it may hold models)."""
        return self._process is not None and self._process.poll() is None

    def ready(self, columns: Sequence[Column]) -> bool:
        """Whether exactly the local ones of these columns are loaded."""
        wanted = [_identity(s) for s in columns if s.local]
        return self.alive and not self.errors and wanted == [_identity(s) for s in self.columns]

    def load(self, columns: Sequence[Column]) -> dict[str, ErrorRecord]:
        """Load the local columns; returns errors by column id. Blocks (seconds)."""
        local = [s for s in columns if s.local]
        if not local:
            return {}
        loaded = self.call(protocol.Load(local), protocol.Loaded)
        self.columns, self.errors, self.memory = local, loaded.errors, loaded.memory
        return self.errors

    def plan(
        self, conversations: Conversations, settings: GenerationSettings
    ) -> dict[str, protocol.Preview]:
        """Exact prompt, cut and possible reply length of each column, without running it."""
        request = protocol.Ask(conversations, settings, op="preview")
        return self.call(request, protocol.Planned).previews

    def divergence(self, pairs: Sequence[protocol.Compared]) -> dict[str, float]:
        """Mean KL to the base per reply token, nats, by column id (``Engine.divergence``)."""
        return self.call(protocol.Diverge(list(pairs)), protocol.Diverged).kl if pairs else {}

    def generate(
        self, conversations: Conversations, settings: GenerationSettings, on_event: OnEvent
    ) -> int:
        """Start replies and return the request's number."""

        def on_message(message: Answer | Told) -> None:
            if isinstance(message, Told):
                on_event(message.event)
            elif isinstance(message, protocol.Generated):
                self.memory = message.memory
            elif isinstance(message, Failed):
                on_event(message)

        return self._send(on_message, protocol.Ask(conversations, settings))

    def stop(self, number: int, column: str | None = None) -> None:
        """Stop the replies of a request, or one column of it."""
        if self.alive:
            self._write(protocol.Stop(number, column))

    def call(self, request: protocol.Request, wanted: type[_A]) -> _A:
        """Send a request and wait for its answer.

        Raises:
            UserError: the worker reported an error or died.
        """
        done = threading.Event()
        last: list[Answer] = []

        def on_message(message: Answer | Told) -> None:
            if not isinstance(message, Told):
                last.append(message)
                done.set()

        self._send(on_message, request)
        done.wait()
        if isinstance(last[0], Failed):
            raise UserError.from_dict(last[0].error)
        assert isinstance(last[0], wanted)
        return last[0]

    def close(self) -> None:
        """End the worker, which frees all its memory, and wait until it is gone."""
        if self._process is not None:
            # Nothing is left to save. Before the lock, which a write to a process that does not
            # read may hold; a stopped one hears the end only when it goes on.
            self._process.send_signal(signal.SIGTERM)
            self._process.send_signal(signal.SIGCONT)
        with self._lock:
            process, self._process = self._process, None
        self.columns, self.errors, self.memory = [], {}, {}
        if process is None:
            return
        if process.stdin:
            with suppress(BrokenPipeError):  # of what could not be written
                process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, on_message: _OnMessage, request: protocol.Request) -> int:
        number = next(self._numbers)
        self._start()
        self._waiting[number] = on_message
        self._write(dataclasses.replace(request, id=number))
        return number

    def _write(self, request: protocol.Request) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise _died("")
        line = protocol.request.dump_json(request).decode()
        try:
            with self._lock:
                process.stdin.write(line + "\n")
                process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            self._waiting.pop(request.id, None)
            raise _died(str(error)) from error

    def _start(self) -> None:
        with self._lock:
            if self.alive:
                return
            self.columns, self.errors = [], {}
            log = paths.home() / "chat-worker.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as stderr:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "core.chat.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    encoding="utf-8",
                    cwd=paths.REPO,
                    env={k: v for k, v in os.environ.items() if k in _ENVIRONMENT},
                    start_new_session=True,
                )
            threading.Thread(target=self._read, args=(self._process, log), daemon=True).start()

    def _read(self, process: subprocess.Popen[str], log: Path) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            try:
                message = protocol.message.validate_json(line)
            except ValueError:  # torn, because it was killed inside the line
                continue
            told = isinstance(message, Told)
            waiting = self._waiting
            on_message = waiting.get(message.id) if told else waiting.pop(message.id, None)
            if on_message:
                on_message(message)
        code = process.wait()
        if self._process is process:
            self.columns = []
        record = _died(_why(code, log)).to_dict()
        for number in list(self._waiting):
            self._waiting.pop(number)(Failed(record, id=number))


def _identity(column: Column) -> tuple[str, str, str | None]:
    return column.id, column.model, column.adapter


def _why(code: int, log: Path) -> str:
    # -9 without a request of ours is, on Linux, nearly always the out-of-memory killer.
    if code == -signal.SIGTERM:
        return "it was unloaded"
    if code == -9:
        return "it was killed, most likely because the machine ran out of memory"
    said = tail(log, 4096)[-400:].strip()
    return f"exit code {code}; end of its log: {said}" if said else f"exit code {code}"


def _died(why: str) -> UserError:
    return UserError(
        "the chat process ended", why=why, fix="load the models again; use fewer or smaller ones"
    )
