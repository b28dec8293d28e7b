"""Multi-turn conversations without a model: a walk through the pack's graph of intents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeVar

from core.persona.persona import Persona, trained_intents
from core.persona.schema import END, GENERAL

T = TypeVar("T")

#: Longest walk is this many identity turns, whatever the pack says.
MAX_ROUNDS = 16


class Graph:
    """The intents of one locale with their edges, ready to walk."""

    def __init__(self, persona: Persona, locale: str) -> None:
        self._intents = list(trained_intents(persona, locale))
        known = set(self._intents)
        self._next: dict[str, dict[str, float]] = {
            key: {s.to: s.p for s in persona.intents[key].next if s.to in known or s.to == END}
            for key in self._intents
        }
        spec = persona.pack.dialogues
        start = {k: p for k, p in spec.start.items() if k in known or k == GENERAL}
        self._start: Mapping[str, float] = start or dict.fromkeys(self._intents, 1.0)
        self._rounds = dict(spec.rounds)
        self._insert = spec.insert_general

    def walk(self, rng: Random, *, with_general: bool) -> list[str]:
        """Intents of one dialogue in order; GENERAL stands for a general turn.

        No intent comes twice. Where the planned number of rounds is not reached along ``next``
        (an END, or only visited intents ahead), a dialogue of at least two rounds stops there; a
        shorter one goes on with any intent not visited.
        """
        rounds = min(_draw(self._rounds, rng), MAX_ROUNDS, max(2, len(self._intents)))
        path: list[str] = []
        seen: list[str] = []
        at = _draw(self._start, rng)
        if at == GENERAL:
            if with_general:
                path.append(GENERAL)
            at = rng.choice(self._intents)
        while True:
            path.append(at)
            seen.append(at)
            if len(seen) >= rounds:
                return path
            step = self._step(at, seen, rng)
            if step is None:
                return path
            if with_general and rng.random() < self._insert:
                path.append(GENERAL)
            at = step

    def _step(self, at: str, seen: Sequence[str], rng: Random) -> str | None:
        ahead = {k: p for k, p in self._next[at].items() if k not in seen}
        step = _draw(ahead, rng) if ahead else END
        if step != END:
            return step
        rest = [k for k in self._intents if k not in seen]
        return rng.choice(rest) if len(seen) < 2 and rest else None


def _draw(weights: Mapping[T, float], rng: Random) -> T:
    return rng.choices(list(weights), list(weights.values()))[0]
