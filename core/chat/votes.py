"""Blind votes: which seat a column takes, and what the votes say, with their uncertainty."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.chat.dialogue import Transcript

TIE, BOTH_BAD = "tie", "both_bad"


def shuffled(chat_id: str, turn: int, columns: Sequence[str]) -> list[str]:
    """Column ids in a shuffled order that is the same whenever this turn is drawn again."""

    def key(column: str) -> bytes:
        return hashlib.sha256(f"{chat_id}:{turn}:{column}".encode()).digest()

    return sorted(columns, key=key)


@dataclass(frozen=True)
class Standing:
    """How a column did.

    Attributes:
        wins: votes for it; ``decided`` votes for any column.
        share: wins / decided; None before the first decided vote.
        low, high: 95 % Wilson score interval of the share.
    """

    label: str
    wins: int
    decided: int
    share: float | None
    low: float
    high: float


@dataclass(frozen=True)
class Tally:
    """All votes."""

    standings: list[Standing]
    ties: int
    both_bad: int

    @property
    def total(self) -> int:
        """Votes of any kind."""
        decided = self.standings[0].decided if self.standings else 0
        return decided + self.ties + self.both_bad


@dataclass(frozen=True)
class Ballot:
    """A vote: the label of what was chosen, TIE or BOTH_BAD, and those of what was to choose."""

    vote: str
    among: tuple[str, ...]


def ballots(transcript: Transcript) -> list[Ballot]:
    """The votes of a conversation, by the labels of its columns."""
    labels = {column.id: column.label for column in transcript.columns}
    return [
        Ballot(labels.get(t.vote, t.vote), tuple(labels.get(c, c) for c in t.replies))
        for t in transcript.turns
        if t.vote
    ]


def tally(cast: Iterable[Ballot]) -> Tally:
    """Count the votes by label.

    Ties say nothing about who is better, so they are counted apart and not into the share.
    """
    given = list(cast)
    votes = Counter(b.vote for b in given)
    ties, bad = votes[TIE], votes[BOTH_BAD]
    wins = {label: votes[label] for b in given for label in b.among}
    decided = sum(wins.values())
    ordered = sorted(wins.items(), key=lambda item: -item[1])
    return Tally([_standing(label, won, decided) for label, won in ordered], ties, bad)


def _standing(label: str, wins: int, decided: int) -> Standing:
    if decided == 0:
        return Standing(label, 0, 0, None, 0.0, 1.0)
    from scipy.stats import binomtest

    interval = binomtest(wins, decided).proportion_ci(method="wilson")
    return Standing(label, wins, decided, wins / decided, float(interval.low), float(interval.high))
