"""One reply while it is made: its text, its end, its timing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.errors import ErrorRecord, UserError
from core.inference.detokenize import IncrementalDecoder
from core.inference.settings import ChatSettings

#: An event is a JSON object: {"type": "start" | "token" | "done" | "error", "side": id, ...}.
Emit = Callable[[dict[str, Any]], None]
#: A page redraws 20 times a second; more events than twice that would only be work.
_EVENT_EVERY_S = 0.025


@dataclass
class Stream:
    """A reply in the making. Engines call ``push`` for every token, from any one thread.

    Attributes:
        prompt: token ids that are fed.
        head: how many of them every prompt of this column begins with (``ChatTemplate.head``).
        cache_tokens: prompt plus the longest reply, i.e. the key-value cache needed.
    """

    side: str
    prompt: list[int]
    settings: ChatSettings
    stop_ids: frozenset[int]
    tokenizer: Any
    emit: Emit
    adapter: str | None = None
    limit: int = 0
    head: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.limit = self.limit or self.settings.max_new_tokens
        self.token_ids: list[int] = []
        self.finished = False
        self._decoder = IncrementalDecoder(self.tokenizer)
        self._text: list[str] = []
        self._unsent = ""
        self._sent_at = 0.0
        self._first = self._last = 0.0

    @property
    def cache_tokens(self) -> int:
        """Entries of the key-value cache that it may need."""
        return len(self.prompt) + self.limit

    def push(self, token: int) -> bool:
        """Take the next token; True when the reply is over (the token is then not fed)."""
        self._last = time.monotonic()
        if not self.token_ids:
            self._first = self._last
        if token in self.stop_ids:
            return self.finish("stop")
        self.token_ids.append(token)
        self._add(self._decoder.push(token))
        if self.cancelled.is_set():
            return self.finish("cancelled")
        if len(self.token_ids) >= self.limit:
            return self.finish(
                "length" if self.limit == self.settings.max_new_tokens else "context"
            )
        return False

    def finish(self, reason: str) -> bool:
        """End the reply; what was written so far stands. Returns True."""
        if not self.finished:
            self._add(self._decoder.finish(), flush=True)
            self.finished = True
            self.emit({"type": "done", "side": self.side, **self._summary(reason)})
        return True

    def fail(self, error: BaseException) -> None:
        """End the reply with an error; the partial text stays with the reader."""
        if not self.finished:
            self._add(self._decoder.finish(), flush=True)
            self.finished = True
            self.emit(
                {
                    "type": "error",
                    "side": self.side,
                    "error": error_record(error),
                    **self._summary("error"),
                }
            )

    def _add(self, text: str, flush: bool = False) -> None:
        self._text.append(text)
        self._unsent += text
        now = time.monotonic()
        if self._unsent and (flush or now - self._sent_at >= _EVENT_EVERY_S):
            self.emit(
                {
                    "type": "token",
                    "side": self.side,
                    "text": self._unsent,
                    **self._pace(),
                }
            )
            self._unsent, self._sent_at = "", now

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the request to the first token."""
        return self._first - self.started if self._first else None

    def _pace(self) -> dict[str, Any]:
        count, spent = len(self.token_ids), self._last - self._first
        return {
            "tokens": count,
            "ttft_s": self.ttft_s,
            # The first token belongs to the prefill, so it is not counted here.
            "tokens_per_s": (count - 1) / spent if count > 1 and spent > 0 else None,
        }

    def _summary(self, reason: str) -> dict[str, Any]:
        return {
            "text": "".join(self._text),
            "token_ids": self.token_ids,
            "finish_reason": reason,
            "prompt_tokens": len(self.prompt),
            **self._pace(),
        }


def error_record(error: BaseException) -> ErrorRecord:
    """An error as what/why/fix, for the other side of a pipe."""
    if is_out_of_memory(error):
        return {
            "what": "out of memory while this column was answering",
            "why": str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
            "fix": "clear the conversation, ask for a shorter reply, or use fewer columns",
        }
    if isinstance(error, UserError):
        return error.to_dict()
    return {"what": "this column stopped with an error", "why": describe(error), "fix": "try again"}


def describe(error: BaseException) -> str:
    """Type and message, bounded."""
    return f"{type(error).__name__}: {error}"[:600]


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error type, Python's, and the CPU allocator's, which is a RuntimeError."""
    return isinstance(error, MemoryError) or any(
        sign in f"{type(error).__name__}: {error}"
        for sign in ("OutOfMemoryError", "out of memory", "can't allocate memory")
    )
