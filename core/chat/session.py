"""A running conversation: sends a prompt to all columns and gathers what streams back.

It belongs to the server, not to a page: a page that is reloaded in the middle of a reply finds the
same session again and goes on drawing it.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from core.chat import transcripts
from core.chat.client import OnEvent, WorkerClient
from core.chat.settings import ChatSettings
from core.chat.sides import SideSpec
from core.chat.transcripts import Reply, Transcript, Turn
from core.errors import UserError

#: A streaming reply is saved this often, so a killed server loses at most this much.
_SAVE_EVERY_S = 2.0


class EndpointStream(Protocol):
    """Streams one reply from a server, in a thread of its own."""

    def start(self, side: SideSpec, messages: Any, settings: ChatSettings, emit: OnEvent) -> None:
        """Return at once; events as of ``core.chat.stream``."""

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
            reply.tokens = event["tokens"]
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


class ChatSession:
    """One conversation and the turn that streams in it, if any."""

    def __init__(
        self, transcript: Transcript, worker: WorkerClient, endpoints: EndpointStream
    ) -> None:
        self.transcript = transcript
        self.live: LiveTurn | None = None
        self._worker = worker
        self._endpoints = endpoints
        self._lock = threading.Lock()
        self.save_error = ""

    def send(self, prompt: str, settings: ChatSettings) -> LiveTurn:
        """Ask all columns. Returns at once; watch the returned turn.

        Raises:
            UserError: the prompt is empty, or a reply is still streaming.
        """
        settings.check()
        if not prompt.strip():
            raise UserError("the message is empty", fix="write something")
        with self._lock:
            if self.live is not None and not self.live.done:
                raise UserError("a reply is still streaming", fix="stop it first, or wait")
            sides = self.transcript.sides
            turn = Turn(prompt, settings, {s.id: Reply() for s in sides})
            live = LiveTurn(turn, frozenset(s.id for s in sides))
            self.live = live
        try:
            self._ask(live, sides, settings)
        except UserError as error:
            record = {"what": error.what, "why": error.why, "fix": error.fix}
            live.apply({"type": "failed", "error": record})
        threading.Thread(target=self._keep, args=(live,), daemon=True).start()
        return live

    def _ask(self, live: LiveTurn, sides: Sequence[SideSpec], settings: ChatSettings) -> None:
        prompt = live.turn.prompt
        for side in sides:
            if not side.local:
                messages = self.transcript.messages(side, prompt)
                self._endpoints.start(side, messages, settings, live.apply)
        local = {s.id: self.transcript.messages(s, prompt) for s in sides if s.local}
        if local:
            live.number = self._worker.generate(local, settings, _only(frozenset(local), live))

    def stop(self, side: str | None = None) -> None:
        """End one column's reply or all; what is written stays, marked as cancelled."""
        live = self.live
        if live is None or live.done:
            return
        self._endpoints.cancel(side)
        if live.number:
            self._worker.stop(live.number, side)

    def regenerate(self) -> LiveTurn:
        """Answer the last prompt again, with the next seed (greedy gives the same reply)."""
        if not self.transcript.turns:
            raise UserError("there is nothing to answer again yet", fix="send a message first")
        last = self.transcript.turns[-1]
        settings = dataclasses.replace(last.settings, seed=last.settings.seed + 1)
        return self.resend(len(self.transcript.turns) - 1, last.prompt, settings)

    def resend(self, index: int, prompt: str, settings: ChatSettings) -> LiveTurn:
        """Go back before turn ``index`` and send ``prompt`` from there."""
        self._idle()
        transcripts.truncate(self.transcript, index)
        return self.send(prompt, settings)

    def clear(self) -> None:
        """Forget all turns."""
        self._idle()
        transcripts.truncate(self.transcript, 0)
        self.live = None

    def _idle(self) -> None:
        if self.live is not None and not self.live.done:
            raise UserError("a reply is still streaming", fix="stop it first, or wait")

    def _keep(self, live: LiveTurn) -> None:
        """Save while it streams, and once it is over make it part of the conversation."""
        seen, saved = -1, time.monotonic()
        while not live.done:
            seen = live.wait(seen, 0.5)
            if time.monotonic() - saved > _SAVE_EVERY_S and not live.done:
                self._save(transcripts.save_partial, live.turn)
                saved = time.monotonic()
        self._save(transcripts.add_turn, live.turn)
        with self._lock:
            if self.live is live:
                self.live = None

    def _save(self, write: Any, turn: Turn) -> None:
        try:
            write(self.transcript, turn)
            self.save_error = ""
        except UserError as error:
            self.save_error = str(error)


def _only(local: frozenset[str], live: LiveTurn) -> OnEvent:
    """The worker's failure ends its own columns, not those of an endpoint."""

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] != "failed":
            live.apply(event)
            return
        for side in local:
            live.apply({"type": "error", "side": side, "error": event["error"]})

    return on_event
