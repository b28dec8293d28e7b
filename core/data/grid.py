"""Conversations as a table for editing: one line an exchange, and back with every fault named."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from core.conversation import Conversation, Kind, Message, content_id
from core.data.fields import RowError, check_text
from core.data.formats import split_pairs
from core.text.normalize import locale_of

#: In the order of the page: what gets edited most comes first.
COLUMNS = ("round", "user", "reply", "learn", "kind", "system", "id")


@dataclass
class Changes:
    """What an edited table asks for. With ``problems`` nothing should be written."""

    rows: list[Conversation] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.rows or self.removed)

    @property
    def label(self) -> str:
        """For the history, e.g. "2 written; 1 removed"."""
        parts = [f"{len(self.rows)} written"] if self.rows else []
        parts += [f"{len(self.removed)} removed"] if self.removed else []
        return "; ".join(parts)


def to_table(rows: Sequence[Conversation]) -> list[dict[str, Any]]:
    """One record an exchange; ``system`` and ``kind`` count on the first one of a conversation."""
    table = []
    for row in rows:
        system, pairs = split_pairs(row)
        for number, ((user, reply), learn) in enumerate(zip(pairs, row.loss, strict=True), 1):
            table.append(
                {
                    "id": row.id,
                    "round": number,
                    "kind": row.kind,
                    "system": system if number == 1 else "",
                    "user": user,
                    "reply": reply,
                    "learn": learn,
                }
            )
    return table


def from_table(table: Sequence[Mapping[str, Any]], before: Sequence[Conversation]) -> Changes:
    """Compare an edited table with the rows it was made from.

    Lines without an id are new conversations of one exchange. A conversation whose lines are all
    gone is removed.
    """
    changes = Changes()
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for at, line in enumerate(table, 1):
        identity = _text(line.get("id"))
        if identity:
            lines.setdefault(identity, []).append(line)
        elif any(_text(line.get(k)) for k in ("user", "reply", "system")):
            _collect(changes, [line], None, f"new line {at}")
    for row in before:
        if row.id not in lines:
            changes.removed.append(row.id)
        else:
            _collect(changes, lines[row.id], row, row.id)
    return changes


def _collect(
    changes: Changes, lines: Sequence[Mapping[str, Any]], old: Conversation | None, where: str
) -> None:
    try:
        row = _conversation(lines, old)
    except RowError as error:
        changes.problems.append(f"{where}, {error.field}: {error.what}; {error.fix}")
        return
    if row != old:
        changes.rows.append(row)


def _conversation(lines: Sequence[Mapping[str, Any]], old: Conversation | None) -> Conversation:
    messages: list[Message] = []
    if system := _text(lines[0].get("system")):
        messages.append({"role": "system", "content": check_text(system, "system")})
    loss = []
    for at, line in enumerate(lines, 1):
        user, reply = _text(line.get("user")), _text(line.get("reply"))
        messages.append({"role": "user", "content": check_text(user, f"round {at}, user")})
        messages.append({"role": "assistant", "content": check_text(reply, f"round {at}, reply")})
        loss.append(line.get("learn") is not False)
    kind = cast(Kind, _text(lines[0].get("kind")) or "own")
    if old is None:
        text = " ".join(m["content"] for m in messages)
        return Conversation(
            f"own-{content_id(messages)}", messages, "own", locale=locale_of(text), loss=loss
        )
    # A reply that somebody has written is whole; one that was cut and left alone is still cut.
    cut = old.cut and messages[-1]["content"] == old.messages[-1]["content"]
    return replace(old, messages=messages, kind=kind, loss=loss, cut=cut)


def _text(value: Any) -> str:
    """A cell's text; empty cells come as None or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(value)
