"""A turn while it streams: gathers the events of all columns until every one has ended."""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

from core.chat.client import OnEvent, WorkerClient
from core.chat.sides import SideSpec
from core.chat.transcripts import Reply, Transcript, Turn
from core.errors import UserError
from core.inference.settings import ChatSettings


class EndpointStream(Protocol):
    """Streams one reply from a server, in a thread of its own."""

    def start(self, side: SideSpec, messages: Any, settings: ChatSettings, emit: OnEvent) -> None:
        """Return at once; events as of ``core.inference.stream``."""

    def cancel(self, side: str | None = None) -> None:
        """Stop one or all."""


@dataclass
class LiveTurn:
    """A turn that streams. All methods may be called from any thread."""

    turn: Turn
    expected: frozenset[str]
    number: int = 0
    over: frozenset[str] = frozenset()
    version: int = 0
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()

    @property
    def done(self) -> bool:
        """Whether every column has ended."""
        return self.over >= self.expected

    def apply(self, event: dict[str, Any]) -> None:
        """Take one event of a column, or the end of the whole request."""
        with self._changed:
            kind, side = event["type"], event.get("side")
            if kind == "failed":
                for name in self.expected - self.over:
                    self._end(name, {"error": event["error"], "finish_reason": "error"})
            elif side in self.expected and side not in self.over:
                self._apply_one(kind, str(side), event)
            self.version += 1
            self._changed.notify_all()

    def _apply_one(self, kind: str, side: str, event: dict[str, Any]) -> None:
        reply = self.turn.replies[side]
        if kind == "start":
            reply.prompt, reply.prompt_ids = event["prompt"], event["prompt_ids"]
            reply.prompt_tokens, reply.cut = len(reply.prompt_ids), event["cut"]
        elif kind == "token":
            reply.text += event["text"]
            for name in ("tokens", "ttft_s", "tokens_per_s"):
                setattr(reply, name, event.get(name, getattr(reply, name)))
        elif kind in ("done", "error"):
            self._end(side, event)

    def _end(self, side: str, event: dict[str, Any]) -> None:
        reply = self.turn.replies[side]
        known = {f.name for f in dataclasses.fields(Reply)}
        for name, value in event.items():
            if name in known:
                setattr(reply, name, value)
        reply.finish_reason = reply.finish_reason or "error"
        self.over = self.over | {side}

    def wait(self, seen: int, timeout: float) -> int:
        """Block until something changed since version ``seen`` or time is out."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != seen or self.done, timeout)
            return self.version


def ask(
    transcript: Transcript,
    prompt: str,
    settings: ChatSettings,
    worker: WorkerClient,
    endpoints: EndpointStream,
) -> LiveTurn:
    """Send a prompt to all columns of a conversation. Returns at once; never raises."""
    sides = transcript.sides
    live = LiveTurn(
        Turn(prompt, settings, {s.id: Reply() for s in sides}), frozenset(s.id for s in sides)
    )
    for side in sides:
        if not side.local:
            endpoints.start(side, transcript.messages(side, prompt), settings, live.apply)
    local = {s.id: transcript.messages(s, prompt) for s in sides if s.local}
    if local:
        on_event = _only(frozenset(local), live)
        try:
            live.number = worker.generate(local, settings, on_event)
        except UserError as error:
            on_event({"type": "failed", "error": error.to_dict()})
    return live


def _only(local: frozenset[str], live: LiveTurn) -> OnEvent:
    """The worker's failure ends its own columns, not those of an endpoint."""

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] != "failed":
            live.apply(event)
            return
        for side in local:
            live.apply({"type": "error", "side": side, "error": event["error"]})

    return on_event
