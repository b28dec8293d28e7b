"""A conversation with several columns: what was asked, what each answered, and all versions."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.chat.columns import Column
from core.conversation import Message
from core.errors import ErrorRecord
from core.inference.settings import GREEDY, GenerationSettings


@dataclass
class Reply:
    """One column's answer. ``finish_reason``: stop, length, context, cancelled, error,
    interrupted (the server ended while it streamed). ``settings``: how it was drawn, where that
    is not how the turn was."""

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
    settings: GenerationSettings | None = None

    @property
    def usable(self) -> bool:
        """Whether it counts as a turn of the conversation from here on."""
        return bool(self.text) or self.error is None


@dataclass
class Turn:
    """A prompt and what every column said to it.

    Attributes:
        replies: the version of each column's reply that is shown and that the talk goes on from.
        versions: of columns that answered more than once all replies, oldest first.
        id: number in the conversation, from 1; 0 before it is saved.
        parent: the turn before it, 0 for a first one. Two turns with one parent are versions of
            a question.
    """

    prompt: str
    settings: GenerationSettings
    replies: dict[str, Reply] = field(default_factory=dict)
    vote: str = ""
    versions: dict[str, list[Reply]] = field(default_factory=dict)
    id: int = 0
    parent: int = 0

    def place(self, column: str) -> tuple[int, int]:
        """Which version of a column's reply is shown, from 0, and how many there are."""
        known = self.versions.get(column)
        if not known:
            return 0, 1
        return next(i for i, r in enumerate(known) if r is self.replies[column]), len(known)

    def answer_again(self, column: str, reply: Reply) -> None:
        """Show another reply of a column; a vote compared the old ones, so it is taken back."""
        self.versions.setdefault(column, [self.replies[column]]).append(reply)
        self.replies[column] = reply
        self.vote = ""


@dataclass
class MessageDraft:
    """A message that could not be sent yet. ``at``: the turn that it takes the place of."""

    text: str
    at: int | None = None


@dataclass
class Transcript:
    """A conversation with all its columns. Each column remembers only what it said itself.

    Attributes:
        turns: the conversation as it is shown.
        others: turns of other versions of a question; nothing that was said is ever dropped.
        draft: what waits for the device.
    """

    id: str
    created: float
    columns: list[Column]
    system: str = ""
    settings: GenerationSettings = GREEDY
    turns: list[Turn] = field(default_factory=list)
    others: list[Turn] = field(default_factory=list)
    draft: MessageDraft | None = None

    @property
    def title(self) -> str:
        """Start of the first prompt."""
        first = self.turns[0].prompt if self.turns else ""
        first = first or (self.draft.text if self.draft else "New conversation")
        line = " ".join(first.split())
        return line[:57] + "..." if len(line) > 60 else line

    @property
    def empty(self) -> bool:
        """Whether nothing was said in it, nor is waiting to be."""
        return not (self.turns or self.others or self.draft)

    def messages(
        self, column: Column, prompt: str | None = None, before: int | None = None
    ) -> list[Message]:
        """What ``column`` is asked to continue, with ``prompt`` as the newest user turn.

        Args:
            before: as if the conversation ended before this turn.
        """
        system = column.system or self.system
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        for turn in self.turns[:before]:
            reply = turn.replies.get(column.id)
            if reply is not None and reply.usable:
                messages.append({"role": "user", "content": turn.prompt})
                messages.append({"role": "assistant", "content": reply.text})
        if prompt is not None:
            messages.append({"role": "user", "content": prompt})
        return messages

    def questions(self, index: int) -> list[Turn]:
        """All versions of the question of turn ``index``, oldest first."""
        parent = self.turns[index].parent
        same = [t for t in (*self.turns, *self.others) if t.parent == parent]
        return sorted(same, key=lambda turn: turn.id)

    def next_id(self) -> int:
        """Of the next turn: above all that there are, so that no turn can be its own parent."""
        return 1 + max((t.id for t in (*self.turns, *self.others)), default=0)

    def by_id(self, turn_id: int) -> Turn:
        """Raises KeyError: there is no such turn."""
        return {t.id: t for t in (*self.turns, *self.others)}[turn_id]

    def add(self, turn: Turn) -> None:
        """A turn behind those that are shown."""
        turn.parent = self.turns[-1].id if self.turns else 0
        self.turns.append(turn)

    def go_back(self, count: int) -> None:
        """Put the turns behind the first ``count`` aside."""
        self.others += self.turns[count:]
        del self.turns[count:]

    def show(self, turn_id: int) -> None:
        """Show this version of a question, with what was last said behind it."""
        known = {t.id: t for t in (*self.turns, *self.others)}
        path = [known[turn_id]]
        while path[0].parent:
            path.insert(0, known[path[0].parent])
        while behind := [t for t in known.values() if t.parent == path[-1].id]:
            path.append(max(behind, key=lambda turn: turn.id))
        shown = {t.id for t in path}
        self.turns, self.others = path, [t for t in known.values() if t.id not in shown]
