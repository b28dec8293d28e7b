"""The five file formats of conversations, and export.

Every format keeps the whole conversation (system turn, which replies are supervised, our own
labels), so that export and import give back what went in. Where the trainer's own reader knows
less than the format can hold, the format's ``caveat`` says so.

Reading files (line by line, with every fault reported) is ``core.data.importer``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.conversation import Conversation
from core.data.codecs import (
    Row,
    from_alpaca,
    from_turns,
    from_ultrachat,
    from_xtuner,
    to_alpaca,
    to_messages,
    to_sharegpt,
    to_ultrachat,
    to_xtuner,
    xtuner_turns,
)
from core.errors import UserError
from core.fsio import dump_json, write_jsonl


@dataclass(frozen=True)
class Format:
    """One file format.

    ``encode`` turns a conversation into the JSON object of one line; ``decode`` is its inverse
    and raises RowError. ``map_fn`` is the dotted path of the function that turns a row into
    XTuner's ``conversation`` during training ("" = the row is one already).
    """

    name: str
    label: str
    about: str
    key: str
    encode: Callable[[Conversation], dict[str, Any]]
    decode: Callable[[Row], Conversation]
    map_fn: str = ""
    caveat: str = ""


def sharegpt_map_fn(example: Row) -> dict[str, Any]:
    """A ``dataset_map_fn`` for XTuner, which ships none for ShareGPT rows."""
    return {"conversation": xtuner_turns(from_turns(_present(example), "conversations"))}


def ultrachat_map_fn(example: Row) -> dict[str, Any]:
    """A ``dataset_map_fn`` for XTuner, which ships none for UltraChat rows."""
    return {"conversation": xtuner_turns(from_ultrachat(_present(example)))}


def _present(example: Row) -> Row:
    # `datasets` fills keys that only other rows have with None.
    return {k: v for k, v in example.items() if v is not None}


_XTUNER_MAPS = "xtuner.dataset.map_fns"

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format(
            "messages",
            "OpenAI messages",
            "one JSON object a line with messages: role and content",
            "messages",
            to_messages,
            lambda row: from_turns(row, "messages"),
            f"{_XTUNER_MAPS}.openai_map_fn",
        ),
        Format(
            "xtuner",
            "XTuner conversation",
            "conversation: system, input, output for each exchange",
            "conversation",
            to_xtuner,
            from_xtuner,
        ),
        Format(
            "sharegpt",
            "ShareGPT",
            "conversations: from and value",
            "conversations",
            to_sharegpt,
            lambda row: from_turns(row, "conversations"),
            "core.data.formats.sharegpt_map_fn",
        ),
        Format(
            "alpaca",
            "Alpaca",
            "instruction, input, output, with system and history",
            "instruction",
            to_alpaca,
            from_alpaca,
            f"{_XTUNER_MAPS}.alpaca_map_fn",
            caveat="XTuner's own Alpaca reader takes the last exchange only, without system "
            "text and history, and puts a line break after the question. Use OpenAI messages "
            "for multi-turn training.",
        ),
        Format(
            "ultrachat",
            "UltraChat",
            "id and data: the texts in turn, user first",
            "data",
            to_ultrachat,
            from_ultrachat,
            "core.data.formats.ultrachat_map_fn",
        ),
    )
}


def get_format(name: str) -> Format:
    """Raises UserError that lists the names."""
    if name not in FORMATS:
        raise UserError(f"unknown format {name!r}", fix=f"use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def detect(row: Row) -> Format | None:
    """The format of a row by the key that only it has; None if no key is known."""
    return next((f for f in FORMATS.values() if f.key in row), None)


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
