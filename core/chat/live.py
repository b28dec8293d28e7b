"""A turn while it streams: gathers the events of all columns until every one has ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from core.chat.client import WorkerClient
from core.chat.columns import Column
from core.chat.dialogue import Reply, Transcript, Turn
from core.chat.protocol import Failed
from core.conversation import Message
from core.errors import ErrorRecord, UserError
from core.inference.events import Begun, Emit, Ended, Event, Grown, Pace
from core.inference.settings import GenerationSettings


class EndpointStream(Protocol):
    """Streams one reply from a server, in a thread of its own."""

    def start(
        self, column: Column, messages: Sequence[Message], settings: GenerationSettings, emit: Emit
    ) -> None:
        """Return at once; events go to ``emit``."""

    def cancel(self, column: str | None = None) -> None:
        """Stop one or all."""


@dataclass
class LiveTurn:
    """A turn that streams. All methods may be called from any thread.

    ``again``: index of the turn that one of its columns answers once more.
    """

    turn: Turn
    expected: frozenset[str]
    again: int | None = None
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

    def apply(self, event: Event) -> None:
        """Take one event of a column."""
        with self._changed:
            if event.column in self.expected - self.over:
                self._take(self.turn.replies[event.column], event)
            self.version += 1
            self._changed.notify_all()

    def fail(self, columns: Iterable[str], error: ErrorRecord) -> None:
        """End these columns, what has come so far stands."""
        with self._changed:
            for name in self.expected & set(columns) - self.over:
                self._fail(name, error)
            self.version += 1
            self._changed.notify_all()

    def _take(self, reply: Reply, event: Event) -> None:
        match event:
            case Begun():
                reply.prompt, reply.prompt_ids = event.prompt, event.prompt_ids
                reply.prompt_tokens, reply.cut = len(event.prompt_ids), event.cut
            case Grown():
                reply.text += event.text
                _keep_pace(reply, event.pace)
            case Ended():
                reply.text, reply.token_ids = event.text, event.token_ids
                reply.finish_reason, reply.error = event.finish_reason, event.error
                if event.prompt_tokens is not None:
                    reply.prompt_tokens = event.prompt_tokens
                _keep_pace(reply, event.pace)
                self.over = self.over | {event.column}

    def _fail(self, column: str, error: ErrorRecord) -> None:
        reply = self.turn.replies[column]
        reply.error, reply.finish_reason = error, "error"
        self.over = self.over | {column}

    def wait(self, seen: int, timeout: float) -> int:
        """Block until something changed since version ``seen`` or time is out."""
        with self._changed:
            self._changed.wait_for(lambda: self.version != seen or self.done, timeout)
            return self.version


def ask(
    transcript: Transcript,
    prompt: str,
    settings: GenerationSettings,
    worker: WorkerClient,
    endpoints: EndpointStream,
    again: tuple[int, Column] | None = None,
) -> LiveTurn:
    """Send a prompt to all columns of a conversation. Returns at once; never raises.

    Args:
        again: ask only this column, as if the conversation ended before this turn.
    """
    before, columns = (again[0], [again[1]]) if again else (None, transcript.columns)
    live = LiveTurn(
        Turn(prompt, settings, {c.id: Reply() for c in columns}),
        frozenset(c.id for c in columns),
        before,
    )
    asked = {c.id: transcript.messages(c, prompt, before) for c in columns}
    for column in columns:
        if not column.local:
            endpoints.start(column, asked[column.id], settings, live.apply)
    local = {c.id: asked[c.id] for c in columns if c.local}
    if local:

        def on_event(event: Event | Failed) -> None:
            # The worker's failure ends its own columns, not those of a server.
            if isinstance(event, Failed):
                live.fail(local, event.error)
            else:
                live.apply(event)

        try:
            live.number = worker.generate(local, settings, on_event)
        except UserError as error:
            live.fail(local, error.to_dict())
    return live


def _keep_pace(reply: Reply, pace: Pace) -> None:
    reply.tokens, reply.ttft_s, reply.tokens_per_s = pace.tokens, pace.ttft_s, pace.tokens_per_s
