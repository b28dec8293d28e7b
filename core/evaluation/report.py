"""A scorecard as one HTML file without outside parts, and two runs compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, Field, TypeAdapter, ValidationError, model_validator

from core import fsio
from core.errors import UserError

TEMPLATE = Path(__file__).resolve().parent / "report.html.jinja"
#: Metrics of the table, in order: (key, title, higher is better).
METRICS: tuple[tuple[str, str, bool], ...] = (
    ("recall", "Recall, held-out wordings", True),
    ("train_recall", "Recall, seen wordings", True),
    ("old", "Old identity claimed", False),
    ("leak", "Leak into general replies", False),
    ("near_miss_leak", "Leak into near-miss replies", False),
    ("intrusion", "General replies that begin with an introduction", False),
    ("degenerate", "Empty or looping general replies", False),
    ("echo", "General replies copied from training", False),
    ("unique_ratio", "Unique general replies", True),
    ("length_ratio", "Reply length over the base's, median", True),
    ("kl_general", "KL to the base, general prompts (nats a token)", False),
    ("top1_agreement", "Most likely token the same as the base's, general prompts", True),
    ("ppl_ratio", "Perplexity of the base's replies over the base's own", False),
    ("kl_identity", "KL to the base, identity prompts", True),
    ("margin", "Persona's reply likelier than the base's", True),
    ("fidelity_role", "States its role", True),
    ("fidelity_skills", "Names its skills", True),
    ("fidelity_limits", "Owns up to its limits", True),
    ("fidelity_manner", "Keeps its manner over eight turns", True),
    ("adversarial_not_old", "Keeps its identity under attack", True),
    ("adversarial_samples_not_old", "The same, sampled at temperature 0.7", True),
    ("unseen_intent", "Recall, intents never trained", True),
    ("language", "Recall, other languages", True),
    ("persistence", "Recall at turn 8 over turn 1", True),
    ("long_context", "Recall after long text", True),
    ("knowledge_accuracy", "Multiple choice", True),
    ("knowledge", "Change in multiple choice against the base", True),
    ("instructions", "Instructions followed", True),
)


@dataclass(frozen=True)
class Change:
    """A prompt with the base's and the tuned model's reply."""

    suite: str
    prompt: str
    base: str
    tuned: str
    label_base: str
    label_tuned: str
    leak: bool
    kl: float | None


class _Gate(BaseModel):
    name: str
    title: str
    shown: str
    limit: str
    outcome: Literal["pass", "warn", "fail", "unknown"]


class _Explanation(BaseModel):
    gates: list[_Gate]
    why: str
    next: str


class _Suite(BaseModel):
    n: int
    sha256: str


class _Card(BaseModel):
    """What pages and reports ask a scorecard for, beside its metrics."""

    schema_: Literal[1] = Field(alias="schema")
    subject: str
    persona: str
    size: str
    created: str
    verdict: str
    explanation: _Explanation
    notes: list[str]
    suites: dict[str, _Suite]
    models: dict[str, dict[str, Any]]
    timing: dict[str, Any]

    @model_validator(mode="after")
    def _sides(self) -> Self:
        for side in ("base", self.subject):
            for key in ("recall", "leak"):
                _COUNTED.validate_python(self.models[side][key])
        float(self.timing["cold_total"])
        return self


class _Counted(BaseModel):
    value: float | None
    hits: int
    n: int
    low: float | None
    high: float | None


class _Row(BaseModel):
    model: str
    suite: str
    id: str
    prompt: str
    reply: str
    label: Literal["OLD", "DEGEN", "MISS", "PART", "HIT"]
    sample: int
    leak: bool
    kl: float | None
    claimed: list[str]
    missing: list[str]


_COUNTED = TypeAdapter(_Counted)
_ROWS = TypeAdapter(list[_Row])


def load(path: Path) -> dict[str, Any]:
    """A saved scorecard.

    Raises:
        UserError: missing, not JSON, or of another schema.
    """
    card = fsio.read_json(path)
    try:
        _Card.model_validate(card)
        table([card])
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path} is not a scorecard",
            why=str(error)[:300],
            fix="give a scorecard.json written by `score`",
        ) from error
    found: dict[str, Any] = card
    return found


def _rows(replies: Path) -> list[dict[str, Any]]:
    """The replies beside a scorecard; none if they were not kept. Raises UserError: not these."""
    if not replies.is_file():
        return []
    rows = list(fsio.read_jsonl(replies))
    try:
        _ROWS.validate_python(rows)
    except ValidationError as error:
        raise UserError(
            f"{replies} does not hold replies of a scorecard",
            why=str(error)[:300],
            fix="score the model again",
        ) from error
    return rows


def show(metrics: dict[str, Any], key: str) -> str:
    """A metric in words: '96/100 (90.2%-98.4%)', '0.031', '' if not measured."""
    value = metrics.get(key)
    if isinstance(value, dict):
        if "hits" in value:
            if not value["n"]:
                return ""
            return f"{value['hits']}/{value['n']} ({value['low']:.1%}-{value['high']:.1%})"
        if "change" in value:
            return (
                f"{value['change']:+.1%} ({value['low']:+.1%} to {value['high']:+.1%}), McNemar "
                f"p {value['p']:.2g}; drops from {value['visible_drop']:.1%} on would show"
            )
        value = value.get("median", value.get("kl"))
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.3g}"


def table(cards: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """One row a metric, one column a side of each card (numbered if there are several)."""
    rows = []
    for key, title, _ in METRICS:
        row = {"metric": title}
        for i, card in enumerate(cards):
            for side, metrics in card["models"].items():
                row[column(i, side, len(cards))] = show(metrics, key)
        if any(v for k, v in row.items() if k != "metric"):
            rows.append(row)
    return rows


def column(index: int, side: str, count: int) -> str:
    """The heading of a side; with several cards it says which one."""
    return side if count == 1 else f"{index + 1}: {side}"


def most_changed(card: dict[str, Any], replies: Path, limit: int = 20) -> list[Change]:
    """The prompts whose replies changed most: leaks, then label changes, then by KL."""
    base: dict[tuple[str, str], dict[str, Any]] = {}
    tuned: dict[tuple[str, str], dict[str, Any]] = {}
    for row in _rows(replies):
        side = {"base": base, card["subject"]: tuned}.get(row["model"])
        if side is not None and not row["sample"]:
            side[row["suite"], row["id"]] = row
    changes = [
        Change(
            row["suite"],
            row["prompt"],
            base[key]["reply"],
            row["reply"],
            base[key]["label"],
            row["label"],
            row["leak"],
            row["kl"],
        )
        for key, row in tuned.items()
        if key in base and key[0] in ("general", "near_miss") and base[key]["reply"] != row["reply"]
    ]
    changes.sort(key=lambda c: (not c.leak, c.label_base == c.label_tuned, -(c.kl or 0.0)))
    return changes[:limit]


def missed(card: dict[str, Any], replies: Path, limit: int = 20) -> list[dict[str, Any]]:
    """Identity probes that the judged model did not answer as the persona."""
    found = [
        r
        for r in _rows(replies)
        if r["model"] == card["subject"]
        and r["label"] != "HIT"
        and not r["sample"]
        and r["suite"] not in ("general", "near_miss", "instructions")
    ]
    order = {"OLD": 0, "DEGEN": 1, "MISS": 2, "PART": 3}
    return sorted(found, key=lambda r: order[r["label"]])[:limit]


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[dict[str, str]]:
    """The judged sides of two cards, metric by metric, with the direction of the change."""
    one, two = (c["models"][c["subject"]] for c in (first, second))
    rows = []
    for key, title, up in METRICS:
        a, b = _number(one.get(key)), _number(two.get(key))
        if a is None or b is None:
            continue
        change = (
            "equal"
            if math.isclose(a, b, abs_tol=1e-9)
            else ("better" if (b > a) == up else "worse")
        )
        if key == "length_ratio" and change != "equal":
            change = "better" if abs(b - 1) < abs(a - 1) else "worse"
        rows.append(
            {
                "metric": title,
                "first": show(one, key),
                "second": show(two, key),
                "second is": change,
            }
        )
    return rows


def comparable(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Reasons why two cards should not be held side by side; empty if they may."""
    reasons = []
    if first["size"] != second["size"]:
        reasons.append(f"sizes differ: {first['size']} and {second['size']}")
    for name in first["suites"].keys() & second["suites"].keys():
        one, two = first["suites"][name], second["suites"][name]
        if one["sha256"] != two["sha256"]:
            reasons.append(f"the suite {name!r} changed between the two")
    if first["persona"] != second["persona"]:
        reasons.append(f"personas differ: {first['persona']} and {second['persona']}")
    return reasons


def _number(value: Any) -> float | None:
    if isinstance(value, dict):
        for key in ("value", "change", "median", "kl"):
            if value.get(key) is not None:
                return float(value[key])
        return None
    return float(value) if isinstance(value, (int, float)) else None


def write_html(scorecards: Sequence[Path], out: Path) -> Path:
    """One page for one scorecard, or for two side by side.

    Raises:
        UserError: none or more than two cards, or a file that is no scorecard.
    """
    import jinja2

    if not 1 <= len(scorecards) <= 2:
        raise UserError("a report shows one scorecard, or two compared", fix="give 1 or 2 files")
    cards = [load(p) for p in scorecards]
    # Replies are text of a model: everything is escaped.
    env = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    text = env.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        cards=[
            {
                "card": c,
                "path": p.parent.name,
                "changes": most_changed(c, p.parent / "replies.jsonl"),
                "missed": missed(c, p.parent / "replies.jsonl"),
            }
            for c, p in zip(cards, scorecards, strict=True)
        ],
        rows=table(cards),
        compared=compare(*cards) if len(cards) == 2 else [],
        warnings=comparable(*cards) if len(cards) == 2 else [],
    )
    fsio.atomic_write_text(out, text)
    return out
