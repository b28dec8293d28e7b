"""Gates and the verdict. All limits stand in ``gates.yaml``."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from core.errors import UserError
from core.text.intervals import Rate, wilson

GATES = Path(__file__).resolve().parent / "gates.yaml"
Outcome = Literal["pass", "warn", "fail", "unknown"]
VERDICTS = (
    "LEARNED",
    "UNDERFIT",
    "OVERFIT",
    "UNSETTLED",
    "COLLAPSED",
    "MEMORISED",
    "PROMPT-BOUND",
    "MERGE-LOST",
    "NOT ENOUGH EVIDENCE",
)


@dataclass(frozen=True)
class Gate:
    """One gate's outcome. ``shown`` is the number that was held against the limit, in words."""

    name: str
    title: str
    about: str
    outcome: Outcome
    value: float | None
    shown: str
    limit: str
    required: bool

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """The one word, why, and what to try next."""

    name: str
    why: str
    next: str
    gates: list[Gate]

    @property
    def passed(self) -> bool:
        """Every gate passes, none warns."""
        return self.name == "LEARNED" and not self.warnings

    @property
    def warnings(self) -> list[Gate]:
        return [g for g in self.gates if g.outcome == "warn"]

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "why": self.why,
            "next": self.next,
            "passed_all": self.passed,
            "gates": [g.to_json() for g in self.gates],
        }


@lru_cache(maxsize=4)
def load_gates(path: Path = GATES) -> dict[str, Any]:
    """The gates file.

    Raises:
        UserError: it cannot be read, or a gate lacks a field.
    """
    import yaml

    try:
        data: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"cannot read the gates file {path}", why=str(error), fix="restore it"
        ) from error
    for name, gate in data["gates"].items():
        lacking = {"title", "metric", "side", "min_n", "sizes", "about"} - set(gate)
        if lacking:
            raise UserError(
                f"gate {name!r} lacks {', '.join(sorted(lacking))}",
                where=f"{path.name}: gates.{name}",
                fix="add the field",
            )
    return data


def judge_gates(metrics: Mapping[str, Any], size: str, path: Path = GATES) -> list[Gate]:
    """Hold a side's numbers (``Measured.to_json``) against every gate that has its number."""
    gates = []
    for name, rule in load_gates(path)["gates"].items():
        found = _lookup(metrics, rule["metric"])
        required = size in rule["sizes"]
        if found is None and not required:
            continue
        gates.append(_judge(name, rule, found, required))
    return gates


def is_lost(name: str, found: Rate, path: Path = GATES) -> bool:
    """Whether a gate fails even at the better end of the interval of what was asked so far."""
    rule = load_gates(path)["gates"][name]
    return _compare(found.high if rule["better"] == "up" else found.low, rule) == "fail"


def at_best(name: str, found: Rate, asked_of: int, path: Path = GATES) -> tuple[Outcome, Rate]:
    """A rate's gate if all that was not asked yet goes as it should.

    Args:
        found: of what was asked. ``asked_of``: how many are asked in all.

    Returns:
        The outcome, and the rate that gives it.
    """
    rule = load_gates(path)["gates"][name]
    left = asked_of - found.n if rule["better"] == "up" else 0
    best = Rate(found.hits + left, asked_of)
    return _rate_outcome(best.to_json(), rule), best


def _lookup(metrics: Mapping[str, Any], dotted: str) -> Any:
    value: Any = metrics
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or value.get(part) is None:
            return None
        value = value[part]
    return value


def _judge(name: str, rule: Mapping[str, Any], found: Any, required: bool) -> Gate:
    if "between" in rule:
        limit = "{} to {}".format(*rule["between"]["pass"])
    else:
        limit = f"{'≥' if rule.get('better') != 'down' else '≤'} {rule['pass']:g}"
    if rule["side"] == "non_inferior":
        limit = f"lower end > {rule['pass']:+.0%}"

    def gate(outcome: Outcome, value: float | None, shown: str) -> Gate:
        return Gate(name, rule["title"], rule["about"], outcome, value, shown, limit, required)

    if found is None or (isinstance(found, float) and math.isnan(found)):
        return gate("unknown", None, "not measured")
    if rule["side"] == "non_inferior":
        return gate(
            _non_inferior(found, rule),
            found["change"],
            f"{found['change']:+.1%} ({found['low']:+.1%} to {found['high']:+.1%})",
        )
    if isinstance(found, Mapping):
        if not found["n"]:
            return gate("unknown", None, "no probes")
        shown = f"{found['hits']}/{found['n']} ({found['low']:.1%} to {found['high']:.1%})"
        return gate(_rate_outcome(found, rule), float(found[rule["side"]]), shown)
    value = float(found)
    return gate(_compare(value, rule), value, f"{value:.3g}")


def _non_inferior(found: Mapping[str, Any], rule: Mapping[str, Any]) -> Outcome:
    """Pass: even the lower end is above the margin. Fail: a drop beyond it that is no chance."""
    margin = rule["pass"]
    if found["low"] > margin:
        return "pass" if found["n"] >= rule["min_n"] else "unknown"
    return "fail" if found["high"] < 0 and found["change"] <= margin else "warn"


def _rate_outcome(found: Mapping[str, Any], rule: Mapping[str, Any]) -> Outcome:
    if found["n"] >= rule["min_n"]:
        lenient = float(found[rule.get("warn_side", rule["side"])])
        return _compare(float(found[rule["side"]]), rule, lenient)
    low, high = wilson(found["hits"], found["n"])
    best = high if rule["better"] == "up" else low
    return "fail" if _compare(best, rule) == "fail" else "unknown"


def _compare(value: float, rule: Mapping[str, Any], lenient: float | None = None) -> Outcome:
    """``lenient`` is held against ``warn`` where the gate says so; else ``value`` is."""
    if "between" in rule:
        for outcome in ("pass", "warn"):
            low, high = rule["between"][outcome]
            if low <= value <= high:
                return "pass" if outcome == "pass" else "warn"
        return "fail"
    sign = 1 if rule["better"] == "up" else -1
    # A billionth forgives the rounding of a rate that meets its limit exactly.
    if sign * value >= sign * rule["pass"] - 1e-9:
        return "pass"
    near = value if lenient is None else lenient
    return "warn" if sign * near >= sign * rule["warn"] - 1e-9 else "fail"


def decide(metrics: Mapping[str, Any], size: str, path: Path = GATES) -> Verdict:
    """The verdict on a tuned model.

    Args:
        metrics: its numbers, ``Measured.to_json``; ``passes`` over the training rows if known.
    """
    gates = judge_gates(metrics, size, path)
    texts = load_gates(path)
    name, why = _name(gates, metrics, texts["verdict"])
    advice = texts["next"][name]
    variant = _variant(name, gates, metrics, texts["verdict"])
    return Verdict(name, why, advice.get(variant) or advice["default"], gates)


def _name(
    gates: Sequence[Gate], metrics: Mapping[str, Any], rules: Mapping[str, float]
) -> tuple[str, str]:
    """The word, and every gate that failed, whichever of them chose the word."""
    failed = [g for g in gates if g.outcome == "fail"]
    about = {g.about for g in failed}
    bound = _prompt_bound(metrics, rules["prompt_bound_drop"])
    if _nothing_said(metrics):
        return (
            "NOT ENOUGH EVIDENCE",
            "the base model itself answers (almost) nothing: its chat "
            "template or its files are wrong, so there is nothing to compare with",
        )
    if "merge" in about:
        return "MERGE-LOST", _because(failed)
    if "damage" in about:
        return _damaged({g.name for g in failed}, metrics, rules), _because(failed)
    if failed or bound:
        if bound:
            return "PROMPT-BOUND", "; ".join(filter(None, [bound, _because(failed)]))
        by_heart = _by_heart(metrics, rules) and (
            "memory" in about
            or _lookup(metrics, "recall.value") < _lookup(metrics, "train_recall.value") - 0.1
        )
        return "MEMORISED" if by_heart else "UNDERFIT", _because(failed)
    # Required or not: what was asked, and too rarely, is no evidence that all is well.
    unknown = [g for g in gates if g.outcome == "unknown"]
    if unknown:
        return "NOT ENOUGH EVIDENCE", _because(unknown)
    warned = [g for g in gates if g.outcome == "warn"]
    return (
        "LEARNED",
        "every gate passes" if not warned else f"no gate fails; just missed: {_because(warned)}",
    )


def _damaged(
    failed: Collection[str], metrics: Mapping[str, Any], rules: Mapping[str, float]
) -> str:
    missed = not _MISSED.isdisjoint(failed)
    perplexity = _lookup(metrics, "kl_general.ppl_ratio") or 0.0
    degenerate = _lookup(metrics, "degenerate_above_base") or 0.0
    lost = (
        perplexity >= rules["collapsed_perplexity"] or degenerate >= rules["collapsed_degenerate"]
    )
    if lost and missed:
        return "COLLAPSED"
    # A persona that is said everywhere was learned too well; one that is also missed was not.
    return "UNSETTLED" if missed else "OVERFIT"


#: Gates that fail where the persona itself is missed, and not only another one claimed.
_MISSED = frozenset({"recall", "persistence"})
#: Advice for a persona whose recall holds, by the gates that failed; the first that fits.
_ADVICE = (
    ("old", frozenset({"old", "adversarial"})),
    ("talks", frozenset({"persistence"})),
)


def _by_heart(metrics: Mapping[str, Any], rules: Mapping[str, float]) -> bool:
    seen = _lookup(metrics, "train_recall.value")
    return seen is not None and seen >= rules["memorised_train_recall"]


def _variant(
    name: str, gates: Sequence[Gate], metrics: Mapping[str, Any], rules: Mapping[str, float]
) -> str:
    """Which advice the numbers call for; texts without that variant fall back to the default."""
    failed = {g.name for g in gates if g.outcome == "fail"}
    if name == "UNDERFIT" and "recall" not in failed:
        for variant, own in _ADVICE:
            if failed & own:
                return variant
    passes, margin = metrics.get("passes"), _lookup(metrics, "margin.value")
    if name == "UNDERFIT" and margin is not None and margin >= rules["leaning_margin"]:
        return "leaning"
    return "early" if passes is not None and passes < rules["early_passes"] else "default"


def _nothing_said(metrics: Mapping[str, Any]) -> bool:
    share = _lookup(metrics, "base_degenerate.value")
    return share is not None and share > 0.5


def _prompt_bound(metrics: Mapping[str, Any], drop: float) -> str:
    """Recall that breaks with the system turn: under a usual one, or the vendor's own."""
    for suite, good, bad in _TURNS:
        asked = metrics.get(suite) or {}
        holds, breaks = asked.get(good), asked.get(bad)
        if holds and breaks and holds["value"] - breaks["value"] >= drop:
            return (
                f"recall is {holds['hits']}/{holds['n']} {_TOLD[good]} and "
                f"{breaks['hits']}/{breaks['n']} {_TOLD[bad]}"
            )
    return ""


#: (suite, system turn under which recall should hold, one that may take it away).
_TURNS = (("system", "none", "default"), ("introduced", "persona", "vendor"))
_TOLD = {
    "none": "without a system turn",
    "default": "under the default one",
    "persona": "with the persona's system turn",
    "vendor": "with the vendor's",
}


def _because(gates: Sequence[Gate]) -> str:
    return "; ".join(f"{g.title}: {g.shown}, limit {g.limit}" for g in gates)
