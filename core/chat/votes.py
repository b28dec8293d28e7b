"""Blind votes: which seat a column takes, and what the votes say, with their uncertainty."""

from __future__ import annotations

import hashlib
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


def tally(transcripts: Iterable[Transcript]) -> Tally:
    """Count the votes by label over these conversations.

    Ties say nothing about who is better, so they are counted apart and not into the share.
    """
    wins: dict[str, int] = {}
    ties = bad = 0
    for transcript in transcripts:
        labels = {s.id: s.label for s in transcript.columns}
        for turn in transcript.turns:
            if not turn.vote:
                continue
            for column in turn.replies:
                wins.setdefault(labels.get(column, column), 0)
            if turn.vote == TIE:
                ties += 1
            elif turn.vote == BOTH_BAD:
                bad += 1
            else:
                wins[labels.get(turn.vote, turn.vote)] += 1
    decided = sum(wins.values())
    ordered = sorted(wins.items(), key=lambda item: -item[1])
    return Tally([_standing(label, won, decided) for label, won in ordered], ties, bad)


def _standing(label: str, wins: int, decided: int) -> Standing:
    if decided == 0:
        return Standing(label, 0, 0, None, 0.0, 1.0)
    from scipy.stats import binomtest

    interval = binomtest(wins, decided).proportion_ci(method="wilson")
    return Standing(label, wins, decided, wins / decided, float(interval.low), float(interval.high))
