"""One reply while it is made: its text, its end, its timing."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tokenizers.decoders import DecodeStream

from core.errors import ErrorRecord, UserError, redacted
from core.inference.events import Emit, Ended, Event, Grown, Pace
from core.inference.requests import FinishReason, Request, text_of

#: A page redraws 20 times a second; more events than twice that would only be work.
_EVENT_EVERY_S = 0.025


def _ignore(event: Event) -> None:
    """Nobody listens."""


@dataclass(eq=False)
class Stream(Request):
    """A reply in the making whose text is sent while it grows.

    Attributes:
        column: the column that it belongs to.
    """

    column: str = ""
    emit: Emit = _ignore

    def __post_init__(self) -> None:
        super().__post_init__()
        self._text = TextStream(self.tokenizer)
        self._unsent = ""
        self._sent = 0  # characters
        self._sent_at = 0.0
        self._started = time.monotonic()
        self._first = self._last = 0.0

    def push(self, token: int) -> None:
        """Take the next token and send its text."""
        self._last = time.monotonic()
        self._first = self._first or self._last
        super().push(token)
        if not self.finished:
            self._unsent += self._text.push(token)
            self._send(len(self._unsent) - self._beginning_of_a_stop())

    def _beginning_of_a_stop(self) -> int:
        """Last characters that may turn out to be no part of the reply."""
        lengths = range(max(map(len, self.stop_texts), default=0), 0, -1)
        starts = tuple(self.stop_texts)
        return next((n for n in lengths if any(s.startswith(self._unsent[-n:]) for s in starts)), 0)

    def finish(self, reason: FinishReason) -> None:
        """End the reply and send the whole of it."""
        if self.finished:
            return
        super().finish(reason)
        text = self.text
        self._unsent = text[self._sent :]
        self._send(len(self._unsent), flush=True)
        self.emit(
            Ended(
                self.column,
                text,
                reason,
                self._pace(),
                token_ids=self.token_ids,
                prompt_tokens=len(self.prompt),
                error=column_error(self.error) if self.error else None,
            )
        )

    def _send(self, count: int, flush: bool = False) -> None:
        """Emit the first ``count`` characters that were not sent, if it is time to."""
        now = time.monotonic()
        if count > 0 and (flush or now - self._sent_at >= _EVENT_EVERY_S):
            text, self._unsent = self._unsent[:count], self._unsent[count:]
            self._sent, self._sent_at = self._sent + count, now
            self.emit(Grown(self.column, text, self._pace()))

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the request to the first token."""
        return self._first - self._started if self._first else None

    def _pace(self) -> Pace:
        count, spent = len(self.token_ids), self._last - self._first
        # The first token belongs to the prefill, so it is not counted here.
        rate = (count - 1) / spent if count > 1 and spent > 0 else None
        return Pace(count, self.ttft_s, rate)


class TextStream:
    """Token ids to text while they arrive: each piece as soon as it is final.

    A token may hold half a character; its text waits for the rest of it.

    Raises:
        UserError: the tokenizer has no fast version, which alone can do this.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"the tokenizer {type(tokenizer).__name__} cannot stream text",
                why="it is a slow tokenizer, without tokenizer.json",
                fix="save the model's fast tokenizer (tokenizer.json) in its folder",
            )
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """Text that became final with this token ('' while a character is incomplete)."""
        self._held.append(token)
        try:
            text = self._stream.step(self._tokenizer.backend_tokenizer, token)
        except Exception:  # its only type: bytes that are no text changed what was sent before
            return self._restart()
        if text is None:
            return ""
        self._held = []
        return text

    def _restart(self) -> str:
        """Whatever is still held back, broken bytes as replacement characters."""
        held, self._held = self._held, []
        self._stream = DecodeStream(held, skip_special_tokens=True)  # a space before it stays
        return text_of(self._tokenizer, held)


def column_error(error: BaseException) -> ErrorRecord:
    """An error as what/why/fix, for the other side of a pipe."""
    if is_out_of_memory(error):
        return {
            "what": "out of memory while this column was answering",
            "why": str(error).splitlines()[0][:300] if str(error) else type(error).__name__,
            "fix": "clear the conversation, ask for a shorter reply, or use fewer columns",
        }
    if isinstance(error, UserError):
        return error.to_dict()
    why = redacted(f"{type(error).__name__}: {error}")[:600]
    return {"what": "this column stopped with an error", "why": why, "fix": "try again"}


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's own error type, Python's, and the CPU allocator's, which is a RuntimeError."""
    return isinstance(error, MemoryError) or any(
        sign in f"{type(error).__name__}: {error}"
        for sign in ("OutOfMemoryError", "out of memory", "can't allocate memory")
    )
