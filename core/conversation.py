"""The three records that cross package borders: a message, a conversation, a probe."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from typing_extensions import TypedDict  # pydantic reads it on Python 3.11

from core.errors import UserError
from core.fsio import dump_json, read_jsonl

Role = Literal["system", "user", "assistant"]
#: What a training row is for. ``own`` rows are the user's, ``rehearsal`` rows the base model's.
Kind = Literal["identity", "near_miss", "rehearsal", "own"]

#: Called by every long core function: (stage, done, total). ``total`` 0 means unknown.
OnProgress = Callable[[str, int, int], None]


class Message(TypedDict):
    """One turn. Content is plain text; special tokens are the template's business."""

    role: Role
    content: str


def content_id(messages: Sequence[Message]) -> str:
    """A stable id (12 hex digits) of a conversation's text."""
    return hashlib.sha256(dump_json(list(messages)).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Conversation:
    """One training row.

    ``loss`` has one entry per assistant message, in order: whether it is supervised. It is
    written out for every assistant message, because datasets 3.x turns a key that only some
    messages have into None, which XTuner reads as "no loss".

    ``cut``: the last reply was stopped before its end, so no turn end is trained after it. A
    rehearsal reply can then be short to make and to train on without teaching short answers.
    """

    id: str
    messages: list[Message]
    kind: Kind = "own"
    intent: str = ""
    cluster: str = ""
    locale: str = "en"
    loss: list[bool] = field(default_factory=list)
    cut: bool = False

    def __post_init__(self) -> None:
        if not self.loss:
            replies = sum(m["role"] == "assistant" for m in self.messages)
            object.__setattr__(self, "loss", [True] * replies)

    @property
    def rounds(self) -> int:
        """User-assistant exchanges."""
        return sum(m["role"] == "assistant" for m in self.messages)

    def to_row(self) -> dict[str, Any]:
        """The JSON object of one line of ``train.jsonl``: OpenAI messages plus our own keys."""
        flags = iter(self.loss)
        messages = [
            {**m, "loss": str(next(flags))} if m["role"] == "assistant" else dict(m)
            for m in self.messages
        ]
        return {
            "id": self.id,
            "messages": messages,
            "kind": self.kind,
            "intent": self.intent,
            "cluster": self.cluster,
            "locale": self.locale,
            "cut": self.cut,
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Conversation:
        """The inverse of ``to_row``. Rows from outside go through core.data.formats instead.

        Raises:
            UserError: the row was not written by ``to_row``.
        """
        try:
            messages: list[Message] = [
                {"role": m["role"], "content": m["content"]} for m in row["messages"]
            ]
            loss = [
                str(m.get("loss", "True")).lower() == "true"
                for m in row["messages"]
                if m["role"] == "assistant"
            ]
            texts = {key: row.get(key, default) for key, default in _LABELS.items()}
            made = cls(
                id=row["id"],
                messages=messages,
                loss=loss,
                cut=bool(row.get("cut", False)),
                **texts,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _damaged(f"{type(error).__name__}: {error}") from error
        if not all(isinstance(t, str) for t in (made.id, *texts.values())) or not all(
            isinstance(text, str) for m in messages for text in m.values()
        ):
            raise _damaged("something that is no text stands where a text belongs")
        return made


#: Labels of a row, and what an older row that lacks one means.
_LABELS: dict[str, Any] = {"kind": "own", "intent": "", "cluster": "", "locale": "en"}


def read_conversations(path: Path) -> Iterator[Conversation]:
    """The rows of a ``train.jsonl``, streamed. Raises UserError: a torn line, a damaged row."""
    return map(Conversation.from_row, read_jsonl(path))


def _damaged(why: str) -> UserError:
    return UserError(
        "a row of the dataset is damaged",
        why=why[:200],
        fix="restore train.jsonl, or import the conversations into a new dataset",
    )


@dataclass(frozen=True)
class Probe:
    """One question of an evaluation suite and what a right reply must hold.

    ``must``: every group needs one of its spellings in the reply (slot aliases).
    ``must_any``: at least one of these spellings, if the list is not empty.
    ``must_not``: names the reply must not claim for itself (denying them is fine).
    """

    id: str
    suite: str
    messages: list[Message]
    intent: str = ""
    cluster: str = ""
    locale: str = "en"
    must: list[list[str]] = field(default_factory=list)
    must_any: list[str] = field(default_factory=list)
    must_not: list[str] = field(default_factory=list)
