"""In which order a checkpoint is asked, and when the rest would change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from core.conversation import Probe
from core.evaluation import verdict
from core.evaluation.measures import Row
from core.text.intervals import Rate, rate

#: Suites whose first third can end the questioning, with the gate that they decide.
_SCREENED = {"held_out": "recall", "general": "leak"}
#: Gates that are rates of one suite; the suite that decides most for least comes first.
_RATES = {"recall": "held_out", "old": "held_out", "near_miss_leak": "near_miss", "leak": "general"}
#: By gate: of what was asked so far, and how many are asked in all.
Rates = Mapping[str, tuple[Rate, int]]


def blocks(
    suites: Mapping[str, Sequence[Probe]], samples: Mapping[str, int]
) -> list[tuple[str, int, Sequence[Probe]]]:
    """(suite, sample, probes) of everything; first a third of each suite that screens."""
    thirds = {name: [suites[name][i::3] for i in range(3)] for name in _SCREENED if name in suites}
    found: list[tuple[str, int, Sequence[Probe]]] = [
        (name, 0, parts[0]) for name, parts in thirds.items()
    ]
    order = [*dict.fromkeys(name for name in _RATES.values() if name in suites)]
    for name in [*order, *(name for name in suites if name not in order)]:
        rest = thirds[name][1:] if name in thirds else [suites[name]]
        found += [(name, 0, part) for part in rest if part]
    found += [
        (name, sample, suites[name]) for name in suites for sample in range(1, samples[name] + 1)
    ]
    return found


class SoFar:
    """What the replies of one side say so far to the gates that are rates of one suite.

    ``thirds``: how many of the blocks are the first thirds.
    """

    def __init__(self, suites: Mapping[str, Sequence[Probe]]) -> None:
        self._sizes = {gate: len(suites[s]) for gate, s in _RATES.items() if s in suites}
        self._hits: dict[str, list[bool]] = {gate: [] for gate in self._sizes}
        self.thirds = sum(name in suites for name in _SCREENED)

    def count(self, suite: str, rows: Sequence[Row]) -> None:
        """Greedy replies of a suite, judged."""
        for gate in self._sizes:
            if _RATES[gate] == suite:
                self._hits[gate] += [_is_hit(gate, row) for row in rows]

    def rates(self) -> Rates:
        """By gate."""
        return {gate: (rate(self._hits[gate]), n) for gate, n in self._sizes.items()}

    def lost(self) -> str:
        """The rates by which the side fails whatever the rest says ('' if it may not)."""
        found = {g: rate(self._hits[g]) for g in _SCREENED.values() if g in self._sizes}
        if not any(verdict.is_lost(gate, so_far) for gate, so_far in found.items()):
            return ""
        return ", ".join(f"{gate} {so_far}" for gate, so_far in found.items())


def _is_hit(gate: str, row: Row) -> bool:
    if gate in ("recall", "old"):
        return row.scored.label == ("HIT" if gate == "recall" else "OLD")
    return row.leak


def cannot_beat(best: tuple[float, ...], step: int, rates: Rates) -> bool:
    """Whether a checkpoint comes after ``best`` even if all that is left goes as it should.

    Args:
        best: ``CheckpointScore.order`` of the best so far; ``step`` of the one that is asked.
    """
    found = {name: verdict.at_best(name, so_far, n) for name, (so_far, n) in rates.items()}
    outcomes = [outcome for outcome, _ in found.values()]
    at_best = (
        False,
        outcomes.count("fail"),
        0,
        outcomes.count("warn"),
        -found["recall"][1].low,
        found["leak"][1].high,
        step,
    )
    return at_best > best
