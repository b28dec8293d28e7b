"""Conversations on disk: one JSONL file each, appended to while it grows, never rewritten."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core import fsio, paths
from core.chat.columns import Column
from core.chat.dialogue import MessageDraft, Reply, Transcript, Turn
from core.chat.votes import Ballot, ballots
from core.errors import UserError, redacted
from core.inference.settings import GREEDY, GenerationSettings

SCHEMA = 2


def create(
    columns: list[Column], system: str = "", settings: GenerationSettings = GREEDY
) -> Transcript:
    """A new conversation with a file of its own."""
    now = time.time()
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(8)}"
    transcript = Transcript(name, now, list(columns), system, settings)
    _append(transcript, _header(transcript))
    return transcript


def _header(transcript: Transcript) -> dict[str, Any]:
    return {
        "type": "chat",
        "schema": SCHEMA,
        "id": transcript.id,
        "created": transcript.created,
        "columns": [c.to_dict() for c in transcript.columns],
        "system": transcript.system,
        "settings": transcript.settings.to_dict(),
    }


def configure(
    transcript: Transcript, columns: list[Column], system: str, settings: GenerationSettings
) -> None:
    """Other columns, another system prompt or other settings from here on."""
    transcript.columns, transcript.system = list(columns), system
    transcript.settings = settings
    _append(transcript, _header(transcript))


def add_turn(transcript: Transcript, turn: Turn) -> None:
    """A finished turn, behind those that are shown."""
    turn.id = transcript.next_id()
    transcript.add(turn)
    _append(transcript, {"type": "turn", **_turn_record(turn)})


def add_version(transcript: Transcript, index: int, column: str, reply: Reply) -> None:
    """Another reply of a column to turn ``index``; it is shown, and the others are kept."""
    turn = transcript.turns[index]
    turn.answer_again(column, reply)
    place, _ = turn.place(column)
    row = {"turn": turn.id, "column": column, "version": place, "reply": asdict(reply)}
    _append(transcript, {"type": "version", **row})


def choose_version(transcript: Transcript, index: int, column: str, version: int) -> None:
    """Show version ``version`` (from 0) of a column's reply; the talk goes on from it."""
    turn = transcript.turns[index]
    turn.replies[column] = turn.versions[column][version]
    row = {"type": "choose", "turn": turn.id, "column": column, "version": version}
    _append(transcript, row)


def save_partial(transcript: Transcript, turn: Turn) -> None:
    """A turn that still streams; read back if the server dies now."""
    turn.id = transcript.next_id()
    _append(transcript, {"type": "partial", **_turn_record(turn)})


def save_partial_version(transcript: Transcript, index: int, column: str, reply: Reply) -> None:
    """A reply that is given again and still streams."""
    turn = transcript.turns[index]
    row = {"turn": turn.id, "column": column, "version": turn.place(column)[1]}
    _append(transcript, {"type": "partial version", **row, "reply": asdict(reply)})


def set_draft(transcript: Transcript, draft: MessageDraft | None) -> None:
    """Keep a message that cannot be sent yet; None once it is given up."""
    transcript.draft = draft
    _append(transcript, {"type": "draft", "draft": asdict(draft) if draft else None})


def go_back(transcript: Transcript, count: int) -> None:
    """Go on behind the first ``count`` turns; the others are put aside."""
    transcript.go_back(count)
    _append(transcript, {"type": "back", "count": count})


def show(transcript: Transcript, turn_id: int) -> None:
    """Show another version of a question, with what was last said behind it."""
    transcript.show(turn_id)
    _append(transcript, {"type": "show", "turn": turn_id})


def set_vote(transcript: Transcript, index: int, vote: str) -> None:
    """Which column won turn ``index``: a column id, "tie" or "both_bad"."""
    transcript.turns[index].vote = vote
    _append(transcript, {"type": "vote", "turn": index, "vote": vote})


def path_of(chat_id: str) -> Path:
    """The file of a conversation; refuses ids that are not our own names."""
    return paths.chats_dir() / f"{fsio.check_name(chat_id, 'conversation')}.jsonl"


def read(chat_id: str) -> Transcript:
    """Replay the file. A torn last line (power cut) is left out.

    Raises:
        UserError: there is no such conversation, or the file is not one.
    """
    file = path_of(chat_id)
    if not file.is_file():
        raise UserError(f"conversation {chat_id} is not there", fix="start a new one")
    try:
        transcript = _replay(file)
    except (
        LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, OSError
    ) as error:  # fmt: skip
        raise UserError(
            f"conversation {chat_id} cannot be read",
            why=f"{type(error).__name__}: {error}"[:300],
            fix="delete it, or open it with the version that wrote it",
        ) from error
    if transcript is None:
        raise UserError(f"{file} is not a conversation", fix="delete it")
    return transcript


def _replay(file: Path) -> Transcript | None:
    transcript: Transcript | None = None
    partial: dict[str, Any] | None = None
    for row in _rows(file):
        kind = row.get("type")
        if kind == "chat":
            transcript = _apply_header(transcript, row, file.stem)
        elif transcript is None:
            break
        elif kind in ("vote", "draft"):  # may come while a reply streams
            _apply(transcript, row)
        else:
            if partial is not None and not _same(partial, row):
                _apply(transcript, partial)
            partial = row if kind in ("partial", "partial version") else None
            if partial is None:
                _apply(transcript, row)
    if transcript is not None and partial is not None:
        _apply(transcript, partial)
    return transcript


def _same(partial: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row is the same turn or reply, further on: else the server died in between."""
    kind = str(partial["type"]).removeprefix("partial ").replace("partial", "turn")
    keys = ("turn", "column", "version") if kind == "version" else ("id",)
    return row.get("type") in (partial["type"], kind) and all(row[k] == partial[k] for k in keys)


def _apply(transcript: Transcript, row: dict[str, Any]) -> None:
    match row.get("type"):
        case "turn" | "partial":
            turn = _turn(row)
            if turn.id < transcript.next_id():
                raise ValueError(f"turn {turn.id} comes twice")
            for reply in turn.replies.values():
                reply.finish_reason = reply.finish_reason or "interrupted"
            transcript.add(turn)
            if transcript.draft and transcript.draft.text == turn.prompt:
                transcript.draft = None  # said with it; what was written meanwhile still waits
        case "version" | "partial version":
            reply = _REPLY.validate_python(row["reply"])
            reply.finish_reason = reply.finish_reason or "interrupted"
            transcript.by_id(int(row["turn"])).answer_again(str(row["column"]), reply)
        case "choose":
            turn, column = transcript.by_id(int(row["turn"])), str(row["column"])
            turn.replies[column] = turn.versions[column][int(row["version"])]
        case "back":
            transcript.go_back(int(row["count"]))
        case "show":
            transcript.show(int(row["turn"]))
        case "vote":
            transcript.turns[int(row["turn"])].vote = str(row["vote"])
        case "draft":
            transcript.draft = _DRAFT.validate_python(row["draft"])


@dataclass(frozen=True)
class Listed:
    """A conversation in a list: ``changed`` when, how many ``turns``, and its blind votes.

    What cannot be read says so in its title.
    """

    id: str
    title: str
    changed: float
    turns: int
    votes: tuple[Ballot, ...] = ()


def list_chats(limit: int = 200) -> list[Listed]:
    """The conversations in which something was said, newest first.

    A file is read again only if it has changed: pages ask at each redraw.
    """
    folder = paths.chats_dir()
    if not folder.is_dir():
        return []
    # A dangling link has a time of its own. Names that are not ours are not our conversations.
    known = {
        f: f.stat() if f.exists() else f.lstat()
        for f in folder.glob("*.jsonl")
        if fsio.is_name(f.stem)
    }
    newest = sorted(known, key=lambda f: known[f].st_mtime_ns, reverse=True)[:limit]
    found = (_listed(f, known[f].st_mtime_ns, known[f].st_size) for f in newest)
    return [chat for chat in found if chat is not None]


@lru_cache(maxsize=1000)
def _listed(file: Path, changed_ns: int, _size: int) -> Listed | None:
    changed = changed_ns / 1e9
    try:
        chat = read(file.stem)
    except UserError as error:
        return Listed(file.stem, f"cannot be read: {error.why or error.what}", changed, 0)
    votes = tuple(ballots(chat))
    return None if chat.empty else Listed(chat.id, chat.title, changed, len(chat.turns), votes)


def delete(chat_id: str) -> None:
    """Remove a conversation for good."""
    with fsio.disk_errors(f"cannot delete conversation {chat_id}"):
        path_of(chat_id).unlink(missing_ok=True)


def _apply_header(transcript: Transcript | None, row: dict[str, Any], chat_id: str) -> Transcript:
    """``chat_id``: of the file, whatever it says itself: what is said next goes into that file."""
    columns = [Column.from_dict(c) for c in row["columns"]]
    system, settings = str(row["system"]), GenerationSettings.from_dict(row["settings"])
    if transcript is None:
        created = float(row["created"])
        time.gmtime(created)  # a time that can be shown
        return Transcript(chat_id, created, columns, system, settings)
    transcript.columns, transcript.system, transcript.settings = columns, system, settings
    return transcript


def _turn_record(turn: Turn) -> dict[str, Any]:
    return {
        "id": turn.id,
        "prompt": turn.prompt,
        "settings": turn.settings.to_dict(),
        "replies": {column: asdict(reply) for column, reply in turn.replies.items()},
    }


def _turn(row: dict[str, Any]) -> Turn:
    return Turn(
        prompt=str(row["prompt"]),
        settings=GenerationSettings.from_dict(row["settings"]),
        replies=_REPLIES.validate_python(row["replies"]),
        id=int(row["id"]),
    )


_REPLY: TypeAdapter[Reply] = TypeAdapter(Reply)
_REPLIES: TypeAdapter[dict[str, Reply]] = TypeAdapter(dict[str, Reply])
_DRAFT: TypeAdapter[MessageDraft | None] = TypeAdapter(MessageDraft | None)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for _, line in fsio.numbered_lines(fsio.read_text(file)):
        try:
            row = fsio.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _append(transcript: Transcript, row: dict[str, Any]) -> None:
    file = path_of(transcript.id)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a", encoding="utf-8", newline="\n") as handle:
            handle.write(redacted(fsio.dump_json(row)) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise UserError(
            f"cannot save the conversation in {file}",
            why=error.strerror or str(error),
            fix="free disk space; the conversation goes on but will not survive a reload",
        ) from error
