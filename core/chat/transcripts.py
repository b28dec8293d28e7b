"""Conversations on disk: one JSONL file each, appended to while it grows, never rewritten."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from core import fsio, paths
from core.chat.sides import SideSpec
from core.conversation import Message
from core.errors import ErrorRecord, UserError
from core.inference.settings import ChatSettings

SCHEMA = 1


@dataclass
class Reply:
    """One column's answer. ``finish_reason``: stop, length, context, cancelled, error,
    interrupted (the server ended while it streamed)."""

    text: str = ""
    finish_reason: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    error: ErrorRecord | None = None
    prompt: str = ""
    prompt_ids: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    cut: int = 0

    @property
    def usable(self) -> bool:
        """Whether it counts as a turn of the conversation from here on."""
        return bool(self.text) or self.error is None


@dataclass
class Turn:
    """A prompt and what every column said to it."""

    prompt: str
    settings: ChatSettings
    replies: dict[str, Reply] = field(default_factory=dict)
    vote: str = ""


@dataclass
class Transcript:
    """A conversation with all its columns. Each column remembers only what it said itself."""

    id: str
    created: float
    sides: list[SideSpec]
    system: str = ""
    turns: list[Turn] = field(default_factory=list)

    @property
    def title(self) -> str:
        """Start of the first prompt."""
        first = self.turns[0].prompt if self.turns else "New conversation"
        line = " ".join(first.split())
        return line[:57] + "..." if len(line) > 60 else line

    def messages(self, side: SideSpec, prompt: str | None = None) -> list[Message]:
        """What ``side`` is asked to continue, with ``prompt`` as the newest user turn."""
        system = side.system or self.system
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for turn in self.turns:
            reply = turn.replies.get(side.id)
            if reply is not None and reply.usable:
                messages.append({"role": "user", "content": turn.prompt})
                messages.append({"role": "assistant", "content": reply.text})
        if prompt is not None:
            messages.append({"role": "user", "content": prompt})
        return messages


def create(sides: list[SideSpec], system: str = "") -> Transcript:
    """A new conversation with a file of its own."""
    now = time.time()
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{secrets.token_hex(2)}"
    transcript = Transcript(name, now, list(sides), system)
    _append(transcript, _header(transcript))
    return transcript


def _header(transcript: Transcript) -> dict[str, Any]:
    return {
        "type": "chat",
        "schema": SCHEMA,
        "id": transcript.id,
        "created": transcript.created,
        "sides": [s.to_dict() for s in transcript.sides],
        "system": transcript.system,
    }


def set_sides(transcript: Transcript, sides: list[SideSpec], system: str) -> None:
    """Other columns or another system prompt from here on."""
    transcript.sides, transcript.system = list(sides), system
    _append(transcript, _header(transcript))


def add_turn(transcript: Transcript, turn: Turn) -> None:
    """A finished turn."""
    transcript.turns.append(turn)
    _append(transcript, {"type": "turn", **_turn_record(turn)})


def save_partial(transcript: Transcript, turn: Turn) -> None:
    """A turn that still streams; what is read back if the server dies now."""
    _append(transcript, {"type": "partial", **_turn_record(turn)})


def truncate(transcript: Transcript, count: int) -> None:
    """Keep the first ``count`` turns (regenerate, edit and resend, clear)."""
    del transcript.turns[count:]
    _append(transcript, {"type": "truncate", "count": count})


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
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError, OSError) as error:
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
    partial: Turn | None = None
    for row in _rows(file):
        kind = row.get("type")
        if kind == "chat":
            transcript = _apply_header(transcript, row)
        elif transcript is None:
            break
        elif kind == "turn":
            transcript.turns.append(_turn(row))
            partial = None
        elif kind == "partial":
            partial = _turn(row)
        elif kind == "truncate":
            del transcript.turns[int(row["count"]) :]
            partial = None
        elif kind == "vote":
            transcript.turns[int(row["turn"])].vote = str(row["vote"])
    if transcript is not None and partial is not None:
        transcript.turns.append(_interrupted(partial))
    return transcript


def _interrupted(turn: Turn) -> Turn:
    for reply in turn.replies.values():
        reply.finish_reason = reply.finish_reason or "interrupted"
    return turn


def list_chats(limit: int = 200) -> list[tuple[str, str, float, int]]:
    """(id, title, time of last change, turns), newest first; what cannot be read says so."""
    folder = paths.chats_dir()
    if not folder.is_dir():
        return []
    # A dangling link has a time of its own. Names that are not ours are not our conversations.
    times = {f: f.lstat().st_mtime for f in folder.glob("*.jsonl") if fsio.is_name(f.stem)}
    found = []
    for file in sorted(times, key=lambda f: times[f], reverse=True)[:limit]:
        try:
            transcript = read(file.stem)
            found.append((file.stem, transcript.title, times[file], len(transcript.turns)))
        except UserError as error:
            found.append((file.stem, f"cannot be read: {error.why or error.what}", times[file], 0))
    return found


def delete(chat_id: str) -> None:
    """Remove a conversation for good."""
    with fsio.disk_errors(f"cannot delete conversation {chat_id}"):
        path_of(chat_id).unlink(missing_ok=True)


def _apply_header(transcript: Transcript | None, row: dict[str, Any]) -> Transcript:
    sides = [SideSpec.from_dict(s) for s in row["sides"]]
    if transcript is None:
        return Transcript(str(row["id"]), float(row["created"]), sides, str(row["system"]))
    transcript.sides, transcript.system = sides, str(row["system"])
    return transcript


def _turn_record(turn: Turn) -> dict[str, Any]:
    return {
        "prompt": turn.prompt,
        "settings": turn.settings.to_dict(),
        "replies": {side: asdict(reply) for side, reply in turn.replies.items()},
    }


def _turn(row: dict[str, Any]) -> Turn:
    return Turn(
        prompt=str(row["prompt"]),
        settings=ChatSettings.from_dict(row["settings"]),
        replies=_REPLIES.validate_python(row["replies"]),
    )


_REPLIES: TypeAdapter[dict[str, Reply]] = TypeAdapter(dict[str, Reply])


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    for _, line in fsio.numbered_lines(file.read_text(encoding="utf-8", errors="replace")):
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
            handle.write(fsio.dump_json(row) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        raise UserError(
            f"cannot save the conversation in {file}",
            why=error.strerror or str(error),
            fix="free disk space; the conversation goes on but will not survive a reload",
        ) from error
