"""A column served by an OpenAI-compatible server: vLLM, LMDeploy, llama.cpp, or the real thing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.chat.sides import SideSpec
from core.conversation import Message
from core.errors import ErrorRecord, UserError, redacted
from core.inference.settings import ChatSettings
from core.text.thoughts import CLOSE, OPEN, answer

Emit = Callable[[dict[str, Any]], None]
#: Seconds to connect, and seconds of silence after which a stream counts as dead.
_CONNECT_S, _SILENCE_S = 5.0, 120.0
#: No tokenizer packs more than this into one token; a server that sends more ignores the limit.
_CHARS_A_TOKEN = 128


class Endpoints:
    """Streams replies of servers, one thread a reply. Keys are read from the environment."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[_EndpointReply] = []

    def start(
        self, side: SideSpec, messages: Sequence[Message], settings: ChatSettings, emit: Emit
    ) -> None:
        """Return at once; events as of ``core.inference.stream``."""
        reply = _EndpointReply(side, list(messages), settings, emit)
        with self._lock:
            self._running = [r for r in self._running if not r.over] + [reply]
        threading.Thread(target=reply.run, name=f"endpoint-{side.id}", daemon=True).start()

    def cancel(self, side: str | None = None) -> None:
        """Stop one column or all; also while the server is silent."""
        with self._lock:
            for reply in self._running:
                if side in (None, reply.side.id):
                    reply.cancel()


@dataclass
class _EndpointReply:
    side: SideSpec
    messages: list[Message]
    settings: ChatSettings
    emit: Emit
    over: bool = False
    text: str = ""
    tokens: int = 0
    reported: dict[str, int] = field(default_factory=dict)
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
                self._end({"type": "error", "error": _error_record(self.side, error, self.text)})
        if self._cancelled:
            self.reason = "cancelled"
        self._end({"type": "done"})

    def cancel(self) -> None:
        self._cancelled = True
        stream = self._stream
        if stream is not None:
            stream.close()
        self.reason = "cancelled"
        self._end({"type": "done"})

    def _consume(self) -> None:
        self.emit(
            {
                "type": "start",
                "side": self.side.id,
                "prompt": "",  # the server's template is not ours to see
                "prompt_ids": [],
                "cut": 0,
            }
        )
        client = _client(self.side)
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
            self.reported = {
                "tokens": chunk.usage.completion_tokens,
                "prompt_tokens": chunk.usage.prompt_tokens,
            }
        for choice in chunk.choices[:1]:
            self.reason = choice.finish_reason or self.reason
            # Servers name it either way; the openai client passes unknown fields on.
            thought = getattr(choice.delta, "reasoning_content", None)
            if thought := thought or getattr(choice.delta, "reasoning", None):
                self._add(thought if self._thinking else OPEN + thought)
                self._thinking = True
            if choice.delta.content:
                self._add(self._end_of_thoughts() + choice.delta.content)

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
            self.emit({"type": "token", "side": self.side.id, "text": text, **self._pace()})
        if too_long:
            raise UserError(
                f"{self.side.base_url} does not keep to {self.settings.max_new_tokens} tokens",
                why=f"it sent more than {_CHARS_A_TOKEN} characters for each; the rest was cut",
                fix="check the server, or ask for longer replies",
            )

    def _pace(self) -> dict[str, Any]:
        spent = self._last - self._first
        return {
            "tokens": self.tokens,
            "ttft_s": self._first - self._started if self._first else None,
            "tokens_per_s": (self.tokens - 1) / spent if spent > 0 else None,
        }

    def _end(self, event: dict[str, Any]) -> None:
        with self._lock:
            if self.over:
                return
            self.over = True
            reason = "error" if event["type"] == "error" else self.reason
            self.emit(
                {
                    **event,
                    "side": self.side.id,
                    "text": self.text,
                    "finish_reason": reason,
                    **self._pace(),
                    **self.reported,
                }
            )


def check(side: SideSpec) -> list[str]:
    """Names of the models that the server offers.

    Raises:
        UserError: nobody answers there, or the server refuses the key.
    """
    try:
        with _client(side) as client:
            return sorted(m.id for m in client.models.list().data)
    except UserError:
        raise
    except Exception as error:
        raise UserError.from_dict(_error_record(side, error, "")) from error


def _client(side: SideSpec) -> Any:
    import openai

    key = os.environ.get(side.key_env, "") if side.key_env else ""
    if side.key_env and not key:
        raise UserError(
            f"the environment variable {side.key_env} is not set",
            why=f"column {side.label!r} takes its key from it",
            fix="set it before the app is started, or leave the field empty",
        )
    return openai.OpenAI(
        base_url=side.base_url,
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
        "model": reply.side.model,
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


def _error_record(side: SideSpec, error: Exception, text: str) -> ErrorRecord:
    if isinstance(error, UserError):
        return error.to_dict()
    # Redacted before it is cut: half a key is a secret too.
    key = os.environ.get(side.key_env, "") if side.key_env else ""
    why = redacted(f"{type(error).__name__}: {error}")
    why = (why.replace(key, "***") if key else why)[:400]
    what = f"{side.base_url} {'broke off in the middle of the reply' if text else 'gave no reply'}"
    return {"what": what, "why": why, "fix": "check that the server runs and serves this model"}
