"""What is told of a reply while it is made, column by column."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from core.errors import ErrorRecord
from core.inference.requests import FinishReason


@dataclass(frozen=True)
class Pace:
    """How fast a reply comes.

    Attributes:
        tokens: so far.
        ttft_s: seconds from the request to the first token.
        tokens_per_s: without the first token, which belongs to the prefill.
    """

    tokens: int = 0
    ttft_s: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class Begun:
    """What a column is fed. Of a server's column only its server knows: text and ids are empty.

    ``cut``: messages of the conversation that were left out, the oldest ones.
    """

    column: str
    prompt: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    cut: int = 0
    kind: Literal["begun"] = "begun"


@dataclass(frozen=True)
class Grown:
    """More text of a reply."""

    column: str
    text: str
    pace: Pace
    kind: Literal["grown"] = "grown"


@dataclass(frozen=True)
class Ended:
    """The last event of a column: the whole reply, or as much as there was before ``error``.

    ``prompt_tokens``: None if nobody counted them.
    """

    column: str
    text: str
    finish_reason: FinishReason
    pace: Pace = Pace()
    token_ids: list[int] = field(default_factory=list)
    prompt_tokens: int | None = None
    error: ErrorRecord | None = None
    kind: Literal["ended"] = "ended"


Event = Begun | Grown | Ended
Emit = Callable[[Event], None]
