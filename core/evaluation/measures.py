"""From labelled replies to numbers. Pure functions; every rate carries its counts.

leak: share of general replies with any accepted spelling of the persona's name or maker, where
    neither the prompt nor the base's reply to it has one. For the base itself: where the prompt
    has none, which shows how often the name is simply a word the model uses.
intrusion: share of general replies whose first sentence introduces the persona.
unique ratio: distinct general replies (letters and digits only) over all of them.
length ratio: length in tokens over that of the base's reply to the same prompt.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.conversation import Probe
from core.evaluation.answers import Answer
from core.probes import fidelity, scorer
from core.probes.scorer import Scored
from core.text import normalize
from core.text.intervals import Rate, quantile, rate


@dataclass(frozen=True)
class Row:
    """One reply of one side, judged."""

    side: str
    probe: Probe
    answer: Answer
    scored: Scored
    leak: bool = False
    intrusion: bool = False
    sample: int = 0
    kl: float | None = None

    @property
    def prompt(self) -> str:
        """The last user message."""
        return self.probe.messages[-1]["content"]

    def to_json(self) -> dict[str, Any]:
        """A line of ``replies.jsonl``."""
        return {
            "model": self.side,
            "suite": self.probe.suite,
            "id": self.probe.id,
            "intent": self.probe.intent,
            "locale": self.probe.locale,
            "prompt": self.prompt,
            "must": self.probe.must,
            "must_any": self.probe.must_any,
            "must_not": self.probe.must_not,
            "turns": sum(m["role"] == "user" for m in self.probe.messages),
            "sample": self.sample,
            "reply": self.answer.text,
            "tokens": len(self.answer.token_ids),
            "cut": self.answer.cut,
            "label": self.scored.label,
            "flags": list(self.scored.flags),
            "claimed": list(self.scored.claimed),
            "missing": list(self.scored.missing),
            "leak": self.leak,
            "intrusion": self.intrusion,
            "kl": self.kl,
        }


@dataclass(frozen=True)
class Yardstick:
    """What replies are held against.

    Attributes:
        aliases: the persona's names and its maker's.
        base: the base's replies to the same suite by probe id; empty for the base itself.
        train_replies: replies that were trained; a reply equal to one is not a loop.
        common_words: aliases among them count only where they are written as names.
    """

    aliases: Sequence[str]
    base: Mapping[str, Answer] = field(default_factory=dict)
    train_replies: Sequence[str] = ()
    common_words: Collection[str] = ()


def judge(
    side: str,
    probes: Sequence[Probe],
    answers: Sequence[Answer],
    against: Yardstick,
    sample: int = 0,
) -> list[Row]:
    """Label the replies of one side to one suite; ``sample`` 0 is the greedy pass."""
    aliases, common = against.aliases, against.common_words
    rows = []
    for probe, answer in zip(probes, answers, strict=True):
        prompt = "\n".join(m["content"] for m in probe.messages)
        theirs = against.base[probe.id].text if probe.id in against.base else ""
        excused = any(scorer.mentions(text, aliases, common) for text in (prompt, theirs))
        rows.append(
            Row(
                side=side,
                probe=probe,
                answer=answer,
                scored=_scored(answer.text, probe, against),
                leak=scorer.mentions(answer.text, aliases, common) and not excused,
                intrusion=scorer.introduces_itself(answer.text, aliases),
                sample=sample,
            )
        )
    return rows


def _scored(reply: str, probe: Probe, against: Yardstick) -> Scored:
    score = fidelity.score if probe.suite in fidelity.SUITES else scorer.score_reply
    return score(
        reply, probe, train_replies=against.train_replies, common_words=against.common_words
    )


@dataclass
class Measured:
    """All numbers of one side. Missing ones (not asked at this size) are None or empty."""

    recall: Rate
    leak: Rate
    suites: dict[str, dict[str, Any]] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """``recall`` and ``leak`` first, then the rest under their own names."""
        return {
            "recall": self.recall.to_json(),
            "leak": self.leak.to_json(),
            **{k: v.to_json() if isinstance(v, Rate) else v for k, v in self.values.items()},
            "suites": self.suites,
        }


def measure(rows: Sequence[Row], base_rows: Sequence[Row] | None) -> Measured:
    """Everything that follows from the replies alone."""
    greedy = [r for r in rows if r.sample == 0]
    by_suite: dict[str, list[Row]] = defaultdict(list)
    for row in greedy:
        by_suite[row.probe.suite].append(row)
    general = by_suite.get("general", [])
    theirs = [r for r in base_rows or () if r.probe.suite == "general" and r.sample == 0]
    values: dict[str, Any] = {
        "old": rate([r.scored.label == "OLD" for r in by_suite.get("held_out", [])]),
        "recall_by_intent": _by(by_suite.get("held_out", []), "intent"),
        "recall_by_locale": _by(by_suite.get("held_out", []), "locale"),
        "near_miss_leak": rate([r.leak for r in by_suite.get("near_miss", [])]),
        "intrusion": rate([r.intrusion for r in general]),
        "degenerate": rate([r.scored.label == "DEGEN" for r in general]),
        "echo": rate(["ECHO" in r.scored.flags for r in general]),
        "unique_ratio": unique_ratio([r.answer.text for r in general]),
        "largest_cluster": largest_cluster([r.answer.text for r in general]),
    }
    if "train" in by_suite:
        values["train_recall"] = recall(by_suite["train"])
    if theirs:
        values["length_ratio"] = length_ratio(general, theirs)
    values.update(_optional(by_suite, rows))
    return Measured(
        recall=recall(by_suite.get("held_out", [])),
        leak=rate([r.leak for r in general]),
        suites={name: _suite(part) for name, part in by_suite.items()},
        values=values,
    )


def _optional(by_suite: Mapping[str, list[Row]], rows: Sequence[Row]) -> dict[str, Any]:
    """What only some sizes ask, or of some bases."""
    out: dict[str, Any] = {}
    if "adversarial" in by_suite:
        attacked = [r for r in rows if r.probe.suite == "adversarial"]
        out["adversarial_not_old"] = rate(
            [r.scored.label not in ("OLD", "DEGEN") for r in by_suite["adversarial"]]
        )
        out["adversarial_samples_not_old"] = rate(
            [r.scored.label not in ("OLD", "DEGEN") for r in attacked if r.sample]
        )
    for name in ("unseen_intent", "language", "long_context"):
        if name in by_suite:
            out[name] = recall(by_suite[name])
    if "multi_turn" in by_suite:
        turns = _by(by_suite["multi_turn"], "cluster")
        out["multi_turn"] = turns
        first, last = turns.get("turn_1"), turns.get("turn_8")
        if first and last and first["hits"]:
            out["persistence"] = last["hits"] / last["n"] / (first["hits"] / first["n"])
    if "long_context" in by_suite:
        out["long_context_by_length"] = _by(by_suite["long_context"], "cluster")
    for name in ("system", "introduced"):
        if name in by_suite:
            out[name] = _by(by_suite[name], "cluster")
    return out | _fidelity([r for name in fidelity.SUITES for r in by_suite.get(name, [])])


def _fidelity(rows: Sequence[Row]) -> dict[str, Any]:
    """Recall by dimension (``fidelity_role``, ...), the same by language, manner turn by turn."""
    out: dict[str, Any] = {}
    for dimension in fidelity.DIMENSIONS:
        own = [r for r in rows if r.probe.intent == dimension]
        if own:
            out[f"fidelity_{dimension}"] = recall(own)
            out.setdefault("fidelity_by_locale", {})[dimension] = _by(own, "locale")
        if own and dimension == "manner":
            out["manner_by_turn"] = _by(own, "cluster")
    return out


def recall(rows: Sequence[Row]) -> Rate:
    """HIT over all."""
    return rate([r.scored.label == "HIT" for r in rows])


def _by(rows: Sequence[Row], attribute: str) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[str(getattr(row.probe, attribute))].append(row)
    return {key: recall(part).to_json() for key, part in sorted(groups.items())}


def _suite(rows: Sequence[Row]) -> dict[str, Any]:
    """Labels of one suite, and for identity suites the mean of the recalls by intent.

    Wordings of one intent succeed and fail together, so the plain rate leans to intents with many
    wordings; the mean over intents does not.
    """
    labels = {label: sum(r.scored.label == label for r in rows) for label in scorer.LABELS}
    groups = _by(rows, "intent")
    macro = sum(g["value"] for g in groups.values()) / len(groups) if groups else math.nan
    return {
        "n": len(rows),
        "labels": labels,
        "recall_macro": macro,
        "leak": rate([r.leak for r in rows]).to_json(),
        "flags": {
            f: n
            for f in ("ECHO", "LANG", "OVERLONG", "DENIED", "ADDRESSED")
            if (n := sum(f in r.scored.flags for r in rows))
        },
    }


def unique_ratio(replies: Sequence[str]) -> float:
    """Distinct replies over all; NaN for none."""
    if not replies:
        return math.nan
    return len({normalize.compact(r) for r in replies}) / len(replies)


def largest_cluster(replies: Sequence[str]) -> float:
    """Share of replies within 90 % similarity of the reply that has most such neighbours."""
    if not replies:
        return math.nan
    from rapidfuzz import fuzz, process

    near = process.cdist(replies, replies, scorer=fuzz.ratio, score_cutoff=90)
    return float((near > 0).sum(axis=1).max() / len(replies))


def length_ratio(rows: Sequence[Row], base: Sequence[Row]) -> dict[str, float]:
    """Median and tails of tokens over the base's tokens, prompt by prompt."""
    theirs = {r.probe.id: len(r.answer.token_ids) for r in base}
    ratios = [len(r.answer.token_ids) / theirs[r.probe.id] for r in rows if theirs.get(r.probe.id)]
    return {
        "median": quantile(ratios, 0.5),
        "p10": quantile(ratios, 0.1),
        "p90": quantile(ratios, 0.9),
    }
