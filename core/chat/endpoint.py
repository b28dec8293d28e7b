"""A column served by an OpenAI-compatible server: vLLM, LMDeploy, llama.cpp, or the real thing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from core.chat.columns import Column
from core.conversation import Message
from core.errors import ErrorRecord, UserError, redacted
from core.inference.events import Begun, Emit, Ended, Grown, Pace
from core.inference.requests import FinishReason
from core.inference.settings import GenerationSettings
from core.text.thoughts import CLOSE, OPEN, answer

#: Seconds to connect, and seconds of silence after which a stream counts as dead.
_CONNECT_S, _SILENCE_S = 5.0, 120.0
#: No tokenizer packs more than this into one token; a server that sends more ignores the limit.
_CHARS_A_TOKEN = 128
#: Servers' words for why a reply ended; whatever else they say (tools, filters) is an end.
_REASONS: dict[str, FinishReason] = {"length": "length", "cancelled": "cancelled"}


class Endpoints:
    """Streams replies of servers, one thread a reply. Keys are read from the environment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[_EndpointReply] = []

    def start(
        self, column: Column, messages: Sequence[Message], settings: GenerationSettings, emit: Emit
    ) -> None:
        """Return at once; events go to ``emit``."""
        reply = _EndpointReply(column, list(messages), settings, emit)
        with self._lock:
            self._running = [r for r in self._running if not r.over] + [reply]
        threading.Thread(target=reply.run, name=f"endpoint-{column.id}", daemon=True).start()

    def cancel(self, column: str | None = None) -> None:
        """Stop one column or all; also while the server is silent."""
        with self._lock:
            for reply in self._running:
                if column in (None, reply.column.id):
                    reply.cancel()


class _Usage(BaseModel):
    """The openai client checks no types."""

    completion_tokens: int = Field(ge=0, lt=1 << 40)
    prompt_tokens: int = Field(ge=0, lt=1 << 40)


def _text(value: str | None) -> str:
    """A text that can be shown and written: JSON can say half of a surrogate pair, UTF-8 cannot."""
    return (value or "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@dataclass
class _EndpointReply:
    column: Column
    messages: list[Message]
    settings: GenerationSettings
    emit: Emit
    over: bool = False
    text: str = ""
    tokens: int = 0
    usage: _Usage | None = None  # what the server itself counted
    reason: str = ""

    def __post_init__(self) -> None:
        self._stream: Any = None
        self._cancelled = False
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._first = self._last = 0.0
        self._thinking = False

    def run(self) -> None:
        try:
            self._consume()
        except Exception as error:  # a broken connection has many types; all end this column only
            if not self._cancelled:
                self._end(_endpoint_error(self.column, error, self.text))
        if self._cancelled:
            self.reason = "cancelled"
        self._end()

    def cancel(self) -> None:
        self._cancelled = True
        stream = self._stream
        if stream is not None:
            stream.close()
        self.reason = "cancelled"
        self._end()

    def _consume(self) -> None:
        self.emit(Begun(self.column.id))
        client = _client(self.column)
        with client:
            self._stream = client.chat.completions.create(**_arguments(self))
            for chunk in self._stream:
                self._take(chunk)
        if closing := self._end_of_thoughts():
            self._add(closing)
        if not self.reason and not self._cancelled:
            raise ConnectionError("the stream ended before the server said why")

    def _take(self, chunk: Any) -> None:
        if chunk.usage is not None:
            with suppress(ValidationError):  # then ours is shown
                self.usage = _Usage.model_validate(chunk.usage, from_attributes=True)
        for choice in chunk.choices[:1]:
            self.reason = str(choice.finish_reason or "") or self.reason
            # Servers name it either way; the openai client passes unknown fields on.
            thought = getattr(choice.delta, "reasoning_content", None)
            if thought := _text(thought or getattr(choice.delta, "reasoning", None)):
                self._add(thought if self._thinking else OPEN + thought)
                self._thinking = True
            if content := _text(choice.delta.content):
                self._add(self._end_of_thoughts() + content)

    def _end_of_thoughts(self) -> str:
        """Closes what came on the reasoning channel; kept as tags, as local models write them."""
        closing, self._thinking = (f"{CLOSE}\n\n" if self._thinking else ""), False
        return closing

    def _add(self, text: str) -> None:
        with self._lock:
            if self.over:
                return
            self._last = time.monotonic()
            self._first = self._first or self._last
            room = self.settings.max_new_tokens * _CHARS_A_TOKEN - len(self.text)
            text, too_long = text[: max(0, room)], len(text) > room
            self.text += text
            self.tokens += 1
            self.emit(Grown(self.column.id, text, self._pace()))
        if too_long:
            raise UserError(
                f"{self.column.base_url} does not keep to {self.settings.max_new_tokens} tokens",
                why=f"it sent more than {_CHARS_A_TOKEN} characters for each; the rest was cut",
                fix="check the server, or ask for longer replies",
            )

    def _pace(self) -> Pace:
        spent = self._last - self._first
        return Pace(
            self.usage.completion_tokens if self.usage else self.tokens,
            self._first - self._started if self._first else None,
            (self.tokens - 1) / spent if spent > 0 else None,
        )

    def _end(self, error: ErrorRecord | None = None) -> None:
        with self._lock:
            if self.over:
                return
            self.over = True
            self.emit(
                Ended(
                    self.column.id,
                    self.text,
                    "error" if error else _REASONS.get(self.reason, "stop"),
                    self._pace(),
                    prompt_tokens=self.usage.prompt_tokens if self.usage else None,
                    error=error,
                )
            )


def check(column: Column) -> list[str]:
    """Names of the models that the server offers.

    Raises:
        UserError: nobody answers there, or the server refuses the key.
    """
    try:
        with _client(column) as client:
            return sorted(m.id for m in client.models.list().data)
    except UserError:
        raise
    except Exception as error:
        raise UserError.from_dict(_endpoint_error(column, error, "")) from error


def _client(column: Column) -> Any:
    import openai

    key = os.environ.get(column.key_env, "") if column.key_env else ""
    if column.key_env and not key:
        raise UserError(
            f"the environment variable {column.key_env} is not set",
            why=f"column {column.label!r} takes its key from it",
            fix="set it before the app is started, or leave the field empty",
        )
    return openai.OpenAI(
        base_url=column.base_url,
        api_key=key or "none",  # servers without a key ignore it; the client insists on one
        timeout=openai.Timeout(_SILENCE_S, connect=_CONNECT_S),
        max_retries=0,  # a retried stream would write its beginning twice
    )


def _arguments(reply: _EndpointReply) -> dict[str, Any]:
    """OpenAI's own fields, and as ``extra_body`` those that local servers add."""
    settings = reply.settings
    extra: dict[str, Any] = {}
    if settings.top_k:
        extra["top_k"] = settings.top_k
    if settings.min_p:
        extra["min_p"] = settings.min_p
    if settings.repetition_penalty != 1.0:
        extra["repetition_penalty"] = settings.repetition_penalty
    return {
        "model": reply.column.model,
        # What it thought in earlier turns is no part of the conversation.
        "messages": [{**m, "content": answer(m["content"])} for m in reply.messages],
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "seed": settings.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": extra or None,
    }


def _endpoint_error(column: Column, error: Exception, text: str) -> ErrorRecord:
    if isinstance(error, UserError):
        return error.to_dict()
    # Redacted before it is cut: half a key is a secret too.
    key = os.environ.get(column.key_env, "") if column.key_env else ""
    why = redacted(f"{type(error).__name__}: {error}")
    why = (why.replace(key, "***") if key else why)[:400]
    what = (
        f"{column.base_url} {'broke off in the middle of the reply' if text else 'gave no reply'}"
    )
    return {"what": what, "why": why, "fix": "check that the server runs and serves this model"}
