"""Training rows that give a held-out probe away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from core.conversation import Conversation, Probe
from core.data.findings import Finding
from core.text import textstats

#: Longest run of words that a training question may share with a probe, and its zh counterpart.
SHARED_RUN = {"en": 8, "zh": 13}


class Contamination:
    """Finds training rows that give a held-out probe away.

    Cluster and wording must differ (errors); a long shared run of words or a spelling that is
    nearly the same is a warning, as paraphrases beyond that only the cluster rule keeps apart.
    """

    def __init__(self, probes: Sequence[Probe]) -> None:
        self._clusters = {p.cluster for p in probes if p.cluster}
        self._plain = {textstats.normal(_question(p)): p.intent for p in probes}
        self._runs: set[tuple[str, ...]] = set()
        for probe in probes:
            size = SHARED_RUN.get(probe.locale, SHARED_RUN["en"])
            for gram in textstats.ngrams(textstats.tokens(_question(probe)), size):
                self._runs.add(gram)
        self._lengths = {len(gram) for gram in self._runs}
        self._near: dict[str, str] = {}

    def check(self, row: Conversation) -> Iterator[Finding]:
        """Findings of one row."""
        if not self._plain:
            return
        both = self._clusters & set(row.cluster.split("+"))
        if both:
            yield Finding(
                "error",
                "held-out-cluster",
                f"cluster {min(both)} is held out",
                "remove the row: its question is a probe",
                row.id,
            )
        for message in row.messages:
            if message["role"] == "user":
                yield from self._wording(message["content"], row)

    def _wording(self, text: str, row: Conversation) -> Iterator[Finding]:
        plain = textstats.normal(text)
        if plain in self._plain:
            yield Finding(
                "error",
                "probe-wording",
                f"{text[:60]!r} is a held-out probe",
                "remove the row",
                row.id,
            )
            return
        parts = textstats.tokens(text)
        shared = any(g in self._runs for n in self._lengths for g in textstats.ngrams(parts, n))
        near = self._is_near(plain)
        # "What can you do?" and "What can't you do?" are near in spelling only. Which turn of a
        # dialogue asks what is not recorded, but the cluster rule has kept its probes apart.
        other = row.intent and near and self._plain[near] != row.intent
        if shared or (near and not other):
            yield Finding(
                "warning",
                "near-probe",
                f"{text[:60]!r} is nearly a held-out probe",
                "remove it from training, or the score says less",
                row.id,
            )

    def _is_near(self, plain: str) -> str:
        if plain not in self._near:
            from rapidfuzz import fuzz, process

            hit: Any = process.extractOne(
                plain, self._plain.keys(), scorer=fuzz.ratio, score_cutoff=90
            )
            self._near[plain] = hit[0] if hit else ""
        return self._near[plain]


def _question(probe: Probe) -> str:
    return probe.messages[-1]["content"]
