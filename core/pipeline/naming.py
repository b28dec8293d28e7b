"""What runs are called where a person reads it: "Mei Lan, run 3"."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from core.jobs.state import Summary

#: What a run of a kind is called where a person reads it: "Mei Lan, run 3".
WORDS = {
    "generate": "build",
    "simulate": "simulation",
    "train": "run",
    "sweep": "checkpoint search",
    "convert": "adapter",
    "merge": "merge",
    "prove": "proof",
    "evaluate": "scorecard",
    "export": "export",
    "tune": "run all",
}


@dataclass(frozen=True)
class Said:
    """A run's name in parts, so that a page can say it in any language.

    ``number`` counts the persona's runs of the kind by their start; a training that was resumed
    keeps its number, and ``resumed`` counts how often it was.
    """

    persona: str
    kind: str
    number: int
    resumed: int = 0

    def __str__(self) -> str:
        word = WORDS.get(self.kind, self.kind)
        return f"{self.persona}, {word} {self.number}" + (" (resumed)" if self.resumed else "")


def names_of(title: str, runs: Sequence[Summary]) -> dict[str, Said]:
    """Names by run id.

    Args:
        title: of the persona. ``runs``: its own, newest first.
    """
    names: dict[str, Said] = {}
    counted: Counter[str] = Counter()
    for run in reversed(runs):
        goes_on = run.kind == "tune" or run.params.get("resume_from")
        before = names.get(run.parent or "") if goes_on else None
        if before is not None and before.kind == run.kind:
            names[run.id] = Said(title, run.kind, before.number, before.resumed + 1)
            continue
        counted[run.kind] += 1
        names[run.id] = Said(title, run.kind, counted[run.kind])
    return names
