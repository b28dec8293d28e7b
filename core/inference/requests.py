"""What is asked of a model and what comes back."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

#: ``stop``: the model ended its turn; ``length``: the reply was cut at the length asked for;
#: ``context``: the model can read no more; ``cancelled``: somebody stopped it.
FinishReason = Literal["stop", "length", "context", "cancelled", "error"]
#: Last tokens among which an end in words is looked for; none is longer.
_TAIL = 32


@dataclass(frozen=True)
class Decoded:
    """One reply. ``token_ids`` has no stop token."""

    text: str
    token_ids: list[int]
    finish_reason: FinishReason


@dataclass(eq=False)
class Request:
    """A prompt and the reply that grows behind it; touched by one thread at a time.

    Attributes:
        prompt: token ids that are fed.
        stop_texts: what ends a reply too, where no token of its own does (``ChatTemplate``).
        limit: longest reply in tokens; ``at_limit`` says why it is not longer.
        seed: start of the random numbers of this reply, and of no other thing: equal seeds over
            equal distributions draw equal tokens.
        head: how many first tokens other prompts share; what is computed for them is kept.
        random: the generator that ``sampling`` made from the seed.
    """

    prompt: list[int]
    stop_ids: frozenset[int]
    limit: int
    adapter: str | None = None
    seed: int = 0
    head: int = 0
    at_limit: FinishReason = "length"
    cancelled: threading.Event = field(default_factory=threading.Event)
    stop_texts: tuple[str, ...] = ()
    tokenizer: Any = None

    def __post_init__(self) -> None:
        self.token_ids: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Exception | None = None
        self.random: Any = None
        self._before_stop: str | None = None

    @property
    def text(self) -> str:
        """The reply so far, without what ended it."""
        if self._before_stop is not None:
            return self._before_stop
        return text_of(self.tokenizer, self.token_ids)

    @property
    def finished(self) -> bool:
        """Whether no token will follow."""
        return self.finish_reason is not None

    @property
    def share(self) -> float:
        """How much of the longest possible reply is written; 1 for one that has ended."""
        return 1.0 if self.finished else len(self.token_ids) / max(1, self.limit)

    def push(self, token: int) -> None:
        """Take the next token; the reply may be over then, and the token is not fed."""
        if token in self.stop_ids:
            self.finish("stop")
            return
        self.token_ids.append(token)
        if self._stops_in_text():
            self.finish("stop")
        elif self.cancelled.is_set():
            self.finish("cancelled")
        elif len(self.token_ids) >= self.limit:
            self.finish(self.at_limit)

    def _stops_in_text(self) -> bool:
        """Whether the reply has ended in words; its tokens are then those before the end."""
        if not any(s in text_of(self.tokenizer, self.token_ids[-_TAIL:]) for s in self.stop_texts):
            return False
        text = self.text
        self._before_stop = text[: min(at for s in self.stop_texts if (at := text.find(s)) >= 0)]
        while len(text_of(self.tokenizer, self.token_ids)) > len(self._before_stop):
            self.token_ids.pop()
        return True

    def finish(self, reason: FinishReason) -> None:
        """End the reply; what was written so far stands."""
        if not self.finished:
            self.finish_reason = reason

    def fail(self, error: Exception) -> None:
        """End the reply with an error, and with it all that share its ``cancelled``."""
        if not self.finished:
            self.error = error
            self.finish("error")
            self.cancelled.set()


def common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that every prompt begins with; each keeps one token of its own at least."""
    first, last = min(map(list, prompts)), max(map(list, prompts))  # the rest lie between
    limit = min(map(len, prompts)) - 1
    same = 0
    while same < limit and first[same] == last[same]:
        same += 1
    return same


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """Token ids as the text that a reader sees."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
