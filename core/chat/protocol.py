"""What the server and its chat worker say to each other: one JSON object a line, typed here.

Every request has a number, and every answer names it. A request is over with its answer; while
replies are generated, ``Told`` passes on what happens in its columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from core.chat.columns import Column
from core.conversation import Message
from core.errors import ErrorRecord
from core.inference.events import Begun, Ended, Grown
from core.inference.settings import GenerationSettings

Conversations = dict[str, list[Message]]


@dataclass(frozen=True)
class Load:
    """Make exactly these columns ready."""

    columns: list[Column]
    id: int = 0
    op: Literal["load"] = "load"


@dataclass(frozen=True)
class Ask:
    """Answer in these columns, or only say what each would be fed."""

    conversations: Conversations
    settings: GenerationSettings
    id: int = 0
    op: Literal["generate", "preview"] = "generate"


@dataclass(frozen=True)
class Compared:
    """A reply of ``column``, and what it and the base were fed, as token ids."""

    column: str
    base: str
    prompts: tuple[list[int], list[int]]
    reply: list[int]


@dataclass(frozen=True)
class Diverge:
    """How far from the base is each of these columns?"""

    pairs: list[Compared]
    id: int = 0
    op: Literal["diverge"] = "diverge"


@dataclass(frozen=True)
class Stop:
    """End the replies of request ``target``, or one column of it. Heard at once, not answered."""

    target: int
    column: str | None = None
    id: int = 0
    op: Literal["stop"] = "stop"


Request = Load | Ask | Diverge | Stop


@dataclass(frozen=True)
class Loaded:
    """Errors by column id; bytes held, as of ``Engine.memory``."""

    errors: dict[str, ErrorRecord]
    memory: dict[str, int]
    id: int = 0
    kind: Literal["loaded"] = "loaded"


@dataclass(frozen=True)
class Preview:
    """What a column would be fed.

    Attributes:
        cut: messages that would be left out.
        limit: longest possible reply, tokens.
        error: why it cannot be asked at all.
    """

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cut: int = 0
    limit: int = 0
    error: ErrorRecord | None = None


@dataclass(frozen=True)
class Planned:
    """Previews by column id."""

    previews: dict[str, Preview]
    id: int = 0
    kind: Literal["planned"] = "planned"


@dataclass(frozen=True)
class Generated:
    """Every column has ended."""

    memory: dict[str, int]
    id: int = 0
    kind: Literal["generated"] = "generated"


@dataclass(frozen=True)
class Diverged:
    """Mean KL by column id, nats; a pair that cannot be compared is left out."""

    kl: dict[str, float]
    id: int = 0
    kind: Literal["diverged"] = "diverged"


@dataclass(frozen=True)
class Failed:
    """The whole request came to nothing."""

    error: ErrorRecord
    id: int = 0
    kind: Literal["failed"] = "failed"


@dataclass(frozen=True)
class Told:
    """Something happened in a column."""

    event: Annotated[Begun | Grown | Ended, Field(discriminator="kind")]
    id: int = 0
    kind: Literal["told"] = "told"


Answer = Loaded | Planned | Generated | Diverged | Failed
#: ``request`` reads and writes what the server says, ``message`` what the worker says.
request: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="op")])
message: TypeAdapter[Answer | Told] = TypeAdapter(
    Annotated[Answer | Told, Field(discriminator="kind")]
)
