"""Plays dialogues: many at once, one model call each at a time, every turn checked.

A user turn that fails its check is asked for again, then replaced by a prepared line. A reply
that fails is asked for again with sampling; if none passes, the exchange is dropped. After two
failed turns the dialogue ends with what it has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from core.conversation import Message
from core.data.ultrachat.backends import Call, Completion, Speaker
from core.data.ultrachat.cards import clean_line, swapped_view, transcript_view
from core.data.ultrachat.openings import Opening
from core.data.ultrachat.turns import check_reply, check_user
from core.errors import UserError

Side = Literal["user", "assistant"]
#: Asked again this often after a rejection.
RETRIES = 3
#: Failed turns after which a dialogue ends.
MAX_FAILED = 2
_STOPS = ("\nUser:", "\nHuman:", "\nAssistant:", "[Human]")


@dataclass(frozen=True)
class Scripted:
    """An exchange of the persona's own templates, played as it stands."""

    user: str
    reply: str
    intent: str
    cluster: str


@dataclass(frozen=True)
class Settings:
    """What the loop needs besides openings. Lengths in tokens.

    ``names``: the persona's names, which neither side may utter unasked; ``forbidden``: names no
    reply may hold; ``transcript``: show the user model the talk as a text, not with swapped roles.
    """

    locale: str
    user_tokens: int = 48
    reply_tokens: int = 192
    transcript: bool = False
    user_temperature: float = 1.0
    names: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()


@dataclass
class Dialogue:
    """One dialogue while it is played."""

    index: int
    opening: Opening
    style: str
    plan: list[Scripted | None]
    settings: Settings
    messages: list[Message] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    tries: int = 0
    tokens: int = 0
    ended: str = ""

    @property
    def rounds(self) -> int:
        return len(self.messages) // 2

    def advance(self) -> Call | None:
        """Play all turns that need no model; the call for the next one, or None at the end."""
        while not self.ended:
            if len(self.messages) % 2:
                return self._reply_call()
            if self.rounds >= len(self.plan):
                self.ended = "planned"
            elif step := self.plan[self.rounds]:
                self._say("user", step.user, "template")
                self._say("assistant", step.reply, "template")
            elif not self.messages and not self.failed:
                self._say("user", self.opening.text, "opening")
            else:
                return self._user_call()
        return None

    def accept(self, completion: Completion) -> None:
        """Check what the model said for the call that ``advance`` gave out."""
        self.tokens += completion.tokens
        if len(self.messages) % 2:
            self._accept_reply(completion)
        else:
            self._accept_user(completion)

    def _user_call(self) -> Call:
        settings = self.settings
        view = transcript_view if settings.transcript else swapped_view
        seen = view(self.messages, self.opening, self.style, settings.locale)
        return Call(seen, settings.user_tokens, settings.user_temperature, 0.95, ("\n", *_STOPS))

    def _reply_call(self) -> Call:
        # Greedy first: the row is to hold what the base model says anyway.
        temperature = 0.7 if self.tries else 0.0
        return Call(list(self.messages), self.settings.reply_tokens, temperature, 0.95, _STOPS)

    def _accept_user(self, completion: Completion) -> None:
        settings = self.settings
        line = clean_line(completion.text)
        fault = check_user(
            line,
            self.messages,
            settings.locale,
            cut=completion.cut,
            names=settings.names,
        )
        if not self._count("user", fault):
            self._say("user", line, "model")
        elif self.tries > RETRIES:
            self._fail()
            prepared = next(self._unused_lines(), None)
            if not self.ended and prepared:
                self._say("user", prepared, "fallback")
            elif not prepared:
                self.ended = self.ended or "no_line_left"

    def _accept_reply(self, completion: Completion) -> None:
        settings = self.settings
        fault = check_reply(
            completion.text,
            self.messages,
            settings.locale,
            cut=completion.cut,
            forbidden=(*settings.forbidden, *settings.names),
        )
        if not self._count("assistant", fault):
            self._say("assistant", completion.text, "model")
        elif self.tries > RETRIES:
            self.messages.pop()
            self.sources.pop()
            if not self.messages:
                self.ended = "opening_unanswered"
            self._fail()

    def _count(self, side: Side, fault: str) -> str:
        self.attempts[side] += 1
        self.tries += 1
        if fault:
            self.rejected[f"{side}.{fault}"] += 1
        return fault

    def _fail(self) -> None:
        self.failed += 1
        self.tries = 0
        if self.failed >= MAX_FAILED:
            self.ended = self.ended or "failed_turns"

    def _unused_lines(self) -> Iterator[str]:
        said = {m["content"] for m in self.messages}
        return (line for line in self.opening.follow_ups if line not in said)

    def _say(self, role: Side, text: str, source: str) -> None:
        self.messages.append({"role": role, "content": text})
        self.sources.append(source)
        self.tries = 0


def play(
    fresh: Callable[[], Dialogue | None],
    user: Speaker,
    assistant: Speaker,
    seed: int,
    budget: CallBudget,
    beat: Callable[[], None],
) -> Iterator[Dialogue]:
    """Play the dialogues that ``fresh`` gives and yield each when it ends.

    ``fresh`` is asked again after every round, so that a dropped dialogue can be replaced.
    ``beat`` is called after every round: the first dialogues may take minutes to end.

    Raises:
        UserError: a model failed, or the budget is used up. All dialogues that had ended by then
            were yielded before.
    """
    slots = min(user.concurrency, assistant.concurrency)
    active: list[Dialogue] = []
    tick = 0
    while True:
        while len(active) < slots and (more := fresh()):
            active.append(more)
        if not active:
            return
        errors = _tick(active, user, assistant, seed * 100_003 + tick, budget)
        tick += 1
        beat()
        yield from (d for d in active if d.ended)
        active = [d for d in active if not d.ended]
        if errors:
            raise errors[0]


@dataclass
class CallBudget:
    """A limit on model calls, shared by both sides."""

    calls: int
    used: int = 0

    def take(self, calls: int) -> None:
        """UserError if ``calls`` more are too many."""
        if self.used + calls > self.calls:
            raise UserError(
                "the call budget is used up",
                why=f"{self.used:,} of {self.calls:,} model calls were made",
                fix="finished dialogues are kept; raise the budget and start again to go on",
            )
        self.used += calls


def _tick(
    active: Sequence[Dialogue], user: Speaker, assistant: Speaker, seed: int, budget: CallBudget
) -> list[UserError]:
    """One call for every active dialogue, both sides in one batch each."""
    waiting: dict[Side, list[tuple[Dialogue, Call]]] = {"user": [], "assistant": []}
    for dialogue in active:
        if call := dialogue.advance():
            side: Side = "assistant" if len(dialogue.messages) % 2 else "user"
            waiting[side].append((dialogue, call))
    errors: list[UserError] = []
    for side, backend in (("user", user), ("assistant", assistant)):
        asked: list[Any] = waiting[side]
        if not asked:
            continue
        try:
            budget.take(len(asked))
        except UserError as error:
            return [*errors, error]
        for (dialogue, _), answer in zip(
            asked, backend.complete([c for _, c in asked], seed), strict=True
        ):
            if isinstance(answer, UserError):
                errors.append(answer)
            else:
                dialogue.accept(answer)
                dialogue.advance()
    return errors
