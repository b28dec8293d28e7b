"""The five file formats of conversations, and export.

Every format keeps the whole conversation (system turn, which replies are supervised, our own
labels), so that export and import give back what went in. Where the trainer's own reader knows
less than the format can hold, the format's ``caveat`` says so.

Reading files is ``core.data.importer``, which knows many more spellings than are written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.conversation import Conversation
from core.errors import UserError
from core.fsio import dump_json, write_jsonl


@dataclass(frozen=True)
class Format:
    """One file format; ``encode`` turns a conversation into the JSON object of one line."""

    name: str
    label: str
    about: str
    encode: Callable[[Conversation], dict[str, Any]]
    caveat: str = ""


def to_messages(c: Conversation) -> dict[str, Any]:
    """OpenAI messages, with ``loss`` on every assistant turn."""
    return c.to_row()


def to_sharegpt(c: Conversation) -> dict[str, Any]:
    """ShareGPT; ``loss`` is a list beside the turns, one entry a reply."""
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    turns = [{"from": names[m["role"]], "value": m["content"]} for m in c.messages]
    return {"id": c.id, "conversations": turns, "loss": c.loss, **_labels(c)}


def split_pairs(c: Conversation) -> tuple[str, list[tuple[str, str]]]:
    """(system text or "", [(user, reply), ...])."""
    texts = [m["content"] for m in c.messages]
    system = texts.pop(0) if c.messages and c.messages[0]["role"] == "system" else ""
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def to_xtuner(c: Conversation) -> dict[str, Any]:
    """XTuner's ``conversation``: an object for each exchange, the system text on the first."""
    system, pairs = split_pairs(c)
    turns = [
        {"system": "", "input": user, "output": reply, "output_with_loss": loss}
        for (user, reply), loss in zip(pairs, c.loss, strict=True)
    ]
    turns[0]["system"] = system
    return {"id": c.id, "conversation": turns, **_labels(c)}


def to_alpaca(c: Conversation) -> dict[str, Any]:
    """Alpaca: the last exchange, with the earlier ones as ``history``."""
    system, pairs = split_pairs(c)
    return {
        "id": c.id,
        "instruction": pairs[-1][0],
        "input": "",
        "output": pairs[-1][1],
        "system": system,
        "history": [list(p) for p in pairs[:-1]],
        "loss": c.loss,
        **_labels(c),
    }


def to_ultrachat(c: Conversation) -> dict[str, Any]:
    """UltraChat: the texts in turn, user first."""
    system, pairs = split_pairs(c)
    return {
        "id": c.id,
        "data": [text for pair in pairs for text in pair],
        "system": system,
        "loss": c.loss,
        **_labels(c),
    }


def _labels(conversation: Conversation) -> dict[str, Any]:
    labels = {k: getattr(conversation, k) for k in ("kind", "intent", "cluster", "locale")}
    return {**labels, "cut": True} if conversation.cut else labels


FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "messages",
            "OpenAI messages",
            "one JSON object a line with messages: role and content",
            to_messages,
        ),
        Format(
            "xtuner",
            "XTuner conversation",
            "conversation: system, input, output for each exchange",
            to_xtuner,
        ),
        Format(
            "sharegpt",
            "ShareGPT",
            "conversations: from and value",
            to_sharegpt,
        ),
        Format(
            "alpaca",
            "Alpaca",
            "instruction, input, output, with system and history",
            to_alpaca,
            caveat="XTuner's own Alpaca reader takes the last exchange only, without system "
            "text and history, and puts a line break after the question. Use OpenAI messages "
            "for multi-turn training.",
        ),
        Format(
            "ultrachat",
            "UltraChat",
            "id and data: the texts in turn, user first",
            to_ultrachat,
        ),
    )
}


def get_format(name: str) -> Format:
    """Raises UserError that lists the names."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}", fix=f"use one of {', '.join(FORMATS)}")
    return FORMATS[name]


@dataclass(frozen=True)
class Exported:
    """What ``export_rows`` wrote. ``notes`` are losses that a reader of the file should know."""

    path: Path
    rows: int
    bytes: int
    notes: list[str] = field(default_factory=list)


def export_lines(rows: Iterable[Conversation], fmt: str) -> Iterator[str]:
    """JSON Lines text, one line a conversation, each with its line break."""
    encode = get_format(fmt).encode
    for row in rows:
        yield dump_json(encode(row)) + "\n"


def export_rows(rows: Iterable[Conversation], fmt: str, path: Path) -> Exported:
    """Stream ``rows`` to ``path`` as JSON Lines; the file appears only when it is whole.

    Raises:
        UserError: unknown format, or the file cannot be written.
    """
    chosen = get_format(fmt)
    narrowed = 0

    def encoded() -> Iterator[dict[str, Any]]:
        nonlocal narrowed
        for row in rows:
            narrowed += row.rounds > 1 or row.messages[0]["role"] == "system"
            yield chosen.encode(row)

    count = write_jsonl(path, encoded())
    notes = []
    if chosen.caveat and narrowed:
        notes.append(
            f"{narrowed:,} of {count:,} rows have several rounds or a system text. " + chosen.caveat
        )
    return Exported(path, count, path.stat().st_size, notes)
