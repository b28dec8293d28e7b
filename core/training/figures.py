"""What is measured of a checkpoint while it trains, and where it is read again.

The figures cost seconds, because the model only rates given texts (``core.training.look``). They
say how far the persona has come and what it costs; the sweep, which lets the model speak, has the
last word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.jobs.journal import read_shared
from core.paths import RunPaths
from core.text.intervals import Rate
from core.training.lineage import lineage


@dataclass(frozen=True)
class Margin:
    """The persona's answer against somebody else's, over held-out questions of one language.

    ``median``: nats a token by which the persona's answer is the likelier one; ``ahead``: how many
    questions it is.
    """

    median: float
    ahead: Rate


@dataclass(frozen=True)
class Figures:
    """One look at the weights after ``step`` optimizer steps. What could not be had is None.

    ``kl``: KL(base || tuned), nats a token; ``ppl_ratio``: perplexity of the base's replies under
    the tuned model over that under the base; ``agreement``: share of tokens with the same most
    likely one; all over general replies of the training rows, so damage shows late.
    """

    step: int
    margins: Mapping[str, Margin] = field(default_factory=dict)
    kl: float | None = None
    ppl_ratio: float | None = None
    agreement: float | None = None
    tokens: int = 0

    @property
    def margin(self) -> float | None:
        """The lowest median over the languages: what is learned in one only is not learned."""
        return min((m.median for m in self.margins.values()), default=None)

    @property
    def ahead(self) -> float | None:
        """The lowest share of questions on which the persona is ahead, over the languages."""
        return min((m.ahead.value for m in self.margins.values()), default=None)

    def to_values(self) -> dict[str, float | None]:
        """Flat, as a job's record has it; ``from_values`` is the inverse."""
        values: dict[str, float | None] = {
            "kl": self.kl,
            "ppl_ratio": self.ppl_ratio,
            "agreement": self.agreement,
            "tokens": self.tokens,
        }
        for locale, margin in self.margins.items():
            values[f"margin.{locale}"] = margin.median
            values[f"ahead.{locale}"] = margin.ahead.hits
            values[f"pairs.{locale}"] = margin.ahead.n
        return {k: v if v is None or math.isfinite(v) else None for k, v in values.items()}

    @classmethod
    def from_values(cls, step: int, values: Mapping[str, float | None]) -> Figures:
        """From a record. Raises KeyError or TypeError: it is not one of ours."""
        margins = {}
        for key, median in values.items():
            part, _, locale = key.partition(".")
            if part == "margin" and median is not None:
                hits, pairs = values[f"ahead.{locale}"], values[f"pairs.{locale}"]
                assert hits is not None and pairs is not None
                margins[locale] = Margin(median, Rate(int(hits), int(pairs)))
        return cls(
            step,
            margins,
            values.get("kl"),
            values.get("ppl_ratio"),
            values.get("agreement"),
            int(values.get("tokens") or 0),
        )

    def line(self) -> str:
        """For a terminal."""
        parts = [
            f"identity margin {locale} {m.median:+.2f} nats ({m.ahead.hits}/{m.ahead.n} ahead)"
            for locale, m in self.margins.items()
        ]
        if self.kl is not None:
            parts.append(f"KL to the base {self.kl:.2f} nats")
        if self.ppl_ratio is not None:
            parts.append(f"perplexity {self.ppl_ratio:.2f} x the base's")
        return f"step {self.step}: " + ", ".join(parts)


def of_run(run: RunPaths) -> list[Figures]:
    """All looks of a run by step, with those of the runs that it goes on from."""
    found: dict[int, Figures] = {}
    for part, until in lineage(run):
        for one in _own(part):
            if until is None or one.step <= until:
                found[one.step] = one
    return [found[step] for step in sorted(found)]


def _own(run: RunPaths) -> Iterator[Figures]:
    for event in read_shared(run.events):
        if (one := of_event(event)) is not None:
            yield one


def of_event(event: Mapping[str, Any]) -> Figures | None:
    """The figures in a line of ``events.jsonl``; None if it is about something else."""
    if event.get("event") != "figures":
        return None
    try:
        return Figures.from_values(int(event["step"]), dict(event["values"]))
    except (KeyError, TypeError, ValueError, AssertionError):
        return None  # a line of somebody else's
