"""The server's end of the chat worker: starts it, sends requests, hands out its events."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core import paths
from core.chat.sides import SideSpec
from core.conversation import Message
from core.errors import ErrorRecord, UserError
from core.inference.settings import ChatSettings

Event = dict[str, Any]
OnEvent = Callable[[Event], None]
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
        self._waiting: dict[int, OnEvent] = {}
        self.sides: list[SideSpec] = []
        self.errors: dict[str, ErrorRecord] = {}
        self.memory: dict[str, int] = {}

    @property
    def alive(self) -> bool:
        """Whether a worker runs (it may hold models)."""
        return self._process is not None and self._process.poll() is None

    def ready(self, sides: Sequence[SideSpec]) -> bool:
        """Whether exactly the local ones of these columns are loaded."""
        wanted = [_identity(s) for s in sides if s.local]
        return self.alive and not self.errors and wanted == [_identity(s) for s in self.sides]

    def load(self, sides: Sequence[SideSpec]) -> dict[str, ErrorRecord]:
        """Load the local columns; returns errors by column id. Blocks (seconds)."""
        local = [s for s in sides if s.local]
        if not local:
            return {}
        reply = self.call("load", sides=[s.to_dict() for s in local])
        self.sides, self.errors = local, dict(reply["errors"])
        self.memory = dict(reply["memory"])
        return self.errors

    def plan(
        self, conversations: Mapping[str, Sequence[Message]], settings: ChatSettings
    ) -> dict[str, dict[str, Any]]:
        """Exact prompt, cut and possible reply length of each column, without running it."""
        reply = self.call("plan", conversations=conversations, settings=settings.to_dict())
        return dict(reply["plans"])

    def divergence(self, items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Mean KL to the base per reply token, nats, by column id (``Engine.divergence``).

        Args:
            items: {"side", "base", "prompts": [side's ids, base's ids], "reply": ids}.
        """
        return dict(self.call("divergence", items=list(items))["kl"]) if items else {}

    def generate(
        self,
        conversations: Mapping[str, Sequence[Message]],
        settings: ChatSettings,
        on_event: OnEvent,
    ) -> int:
        """Start replies and return the request's number; the last event is finished or failed."""

        def remember(event: Event) -> None:
            self.memory = event.get("memory", self.memory)
            on_event(event)

        return self._send(
            remember, "generate", conversations=conversations, settings=settings.to_dict()
        )

    def stop(self, number: int, side: str | None = None) -> None:
        """Stop the replies of a request, or one column of it."""
        if self.alive:
            self._write({"id": 0, "op": "stop", "target": number, "side": side})

    def call(self, op: str, **fields: Any) -> Event:
        """Send a request and wait for its end.

        Raises:
            UserError: the worker reported an error or died.
        """
        done = threading.Event()
        last: list[Event] = []

        def on_event(event: Event) -> None:
            if event["type"] in ("finished", "failed"):
                last.append(event)
                done.set()

        self._send(on_event, op, **fields)
        done.wait()
        if last[0]["type"] == "failed":
            raise UserError.from_dict(last[0]["error"])
        return last[0]

    def close(self) -> None:
        """End the worker, which frees all its memory, and wait until it is gone."""
        with self._lock:
            process, self._process = self._process, None
        self.sides, self.errors, self.memory = [], {}, {}
        if process is None:
            return
        if process.stdin:
            process.stdin.close()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, on_event: OnEvent, op: str, **fields: Any) -> int:
        number = next(self._numbers)
        self._start()
        self._waiting[number] = on_event
        self._write({"id": number, "op": op, **fields})
        return number

    def _write(self, request: Mapping[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None:
            raise _died("")
        line = json.dumps(request, ensure_ascii=False)
        try:
            with self._lock:
                process.stdin.write(line + "\n")
                process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            self._waiting.pop(int(request["id"]), None)
            raise _died(str(error)) from error

    def _start(self) -> None:
        with self._lock:
            if self.alive:
                return
            self.sides, self.errors = [], {}
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
            event: Event = json.loads(line)
            number = int(event["id"])
            last = event["type"] in ("finished", "failed")
            on_event = self._waiting.pop(number, None) if last else self._waiting.get(number)
            if on_event:
                on_event(event)
        code = process.wait()
        if self._process is process:
            self.sides = []
        record = _died(_why(code, log)).to_dict()
        for number in list(self._waiting):
            self._waiting.pop(number)({"id": number, "type": "failed", "error": record})


def _identity(side: SideSpec) -> tuple[str, str, str | None]:
    return side.id, side.model, side.adapter


def _why(code: int, log: Path) -> str:
    # -9 without a request of ours is, on Linux, nearly always the out-of-memory killer.
    if code == -9:
        return "it was killed, most likely because the machine ran out of memory"
    tail = log.read_text(encoding="utf-8", errors="replace")[-400:].strip() if log.exists() else ""
    return f"exit code {code}; end of its log: {tail}" if tail else f"exit code {code}"


def _died(why: str) -> UserError:
    return UserError(
        "the chat process ended", why=why, fix="load the models again; use fewer or smaller ones"
    )
