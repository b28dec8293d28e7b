"""Which recipe holds on which model? Models x recipes x personas x seeds on one device.

    python benchmarks/recipe_trials.py --models bundled DIR --recipe default= \\
        --recipe hot=train.lr=1e-3 --recipe fp=train.quantize="none" \\
        --recipe kl=train.anchor_kl=4 --personas Luna Orlin Tamsin --seeds 3 --parallel 5

A recipe is a name and the settings that it changes: ``data.*`` of ``DatasetSpec``, ``train.*`` of
``TrainSpec``; all others stay the app's own choice for that model. ``data.copies=768`` is the
tutorial's data instead, one row so many times. Every checkpoint is scored as
the app's sweep does; the recommended one is shown. The last table holds the cheap figures, which
need no generated token, against the sweep's: Spearman's rank correlation over all checkpoints.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import persona_trials as trials
from benchmarks.persona_trials import Trial

#: Figures by teacher forcing, and those of the sweep that they should foretell.
CHEAP = ("margin.median", "margin.value", "kl_general.kl", "kl_identity.kl", "ppl_ratio")
SWEPT = ("recall.value", "leak.value", "near_miss_leak.value", "old.value")


def settings(text: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """``name=part.key=value,...`` as (name, {"data": {...}, "train": {...}}).

    Raises:
        ValueError: a setting is not ``data.KEY=VALUE`` or ``train.KEY=VALUE``.
    """
    name, _, rest = text.partition("=")
    found: dict[str, dict[str, Any]] = {"data": {}, "train": {}}
    for one in filter(None, rest.split(",")):
        key, equals, value = one.partition("=")
        part, _, field = key.partition(".")
        if part not in found or not field or not equals:
            raise ValueError(f"{one!r} in recipe {name!r}: write data.KEY=VALUE or train.KEY=VALUE")
        found[part][field] = _value(value)
    return name, found


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # a word: train.quantize=none


def plan(args: Any) -> list[Trial]:
    """Recipe by model by persona by seed; the trials of one seed before those of the next."""
    small = {"max_rows": 12, "rehearsal_ratio": 1.0, "near_miss_ratio": 0.5} if args.toy else {}
    short = {"steps": 2, "warmup_steps": 1, "checkpoint_every": 1} if args.toy else {}
    return [
        Trial(
            f"{Path(model).name}-{name}-{persona}-{seed}".lower(),
            persona,
            seed,
            name,
            {**small, **{k: v for k, v in changed["data"].items() if k != "copies"}},
            {**short, **changed["train"]},
            copies=changed["data"].get("copies", 0),
            size="smoke" if args.toy else "sweep",
            model=model,
        )
        for seed in range(1 if args.toy else args.seeds)
        for model in args.models
        for name, changed in map(settings, args.recipe)
        for persona in args.personas
    ]


def look(metrics: dict[str, Any], path: str) -> float | None:
    """``recall.value`` in nested metrics; None where it was not measured."""
    at: Any = metrics
    for key in path.split("."):
        at = at.get(key) if isinstance(at, dict) else None
    return float(at) if isinstance(at, int | float) else None


def correlations(results: list[dict[str, Any]]) -> list[list[str]]:
    """One row a cheap figure: its rank correlation with each of the sweep's."""
    from scipy.stats import spearmanr

    rows = []
    for cheap in CHEAP:
        cells = []
        for swept in SWEPT:
            pairs = [
                (a, b)
                for r in results
                for c in r["sweep"]["checkpoints"]
                if (a := look(c["metrics"], cheap)) is not None
                and (b := look(c["metrics"], swept)) is not None
            ]
            varied = len({a for a, _ in pairs}) > 1 and len({b for _, b in pairs}) > 1
            if len(pairs) < 4 or not varied:
                cells.append("-")
                continue
            rho = spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic
            cells.append(f"{rho:+.2f} ({len(pairs)})")
        rows.append([cheap, *cells])
    return rows


def _number(metrics: dict[str, Any], path: str) -> str:
    value = look(metrics, path)
    return "" if value is None else f"{value:.2f}"


def _row(result: dict[str, Any], checkpoint: dict[str, Any]) -> list[str]:
    metrics = checkpoint["metrics"]
    old = metrics.get("old") or {}
    return [
        Path(result["model"]).name,
        result["regime"],
        result["persona"],
        str(result["seed"]),
        f"{result['lr']:.1e}",
        f"{checkpoint['step']} of {result['steps']}",
        *trials.cells(checkpoint)[1:4],
        f"{old['hits']}/{old['n']}" if old else "",
        _number(metrics, "margin.median"),
        _number(metrics, "ppl_ratio"),
        _number(metrics, "top1_agreement"),
        checkpoint["verdict"],
    ]


HEAD = [
    *("model", "recipe", "persona", "seed", "lr", "step", "recall", "leak", "near-miss", "old"),
    *("margin", "ppl ratio", "agreement", "verdict"),
]


def _part(metrics: list[dict[str, Any]], key: str, of: str) -> str:
    """One intent's or one language's recall, all trials together."""
    return trials.interval([m[key][of] for m in metrics if of in (m.get(key) or {})])


def _range(metrics: list[dict[str, Any]], path: str) -> str:
    found = [x for m in metrics if (x := look(m, path)) is not None]
    return f"{min(found):.2f} to {max(found):.2f}" if found else ""


def _missed(metrics: list[dict[str, Any]]) -> str:
    """Intents with what they miss of what was asked, the worst first."""
    lost: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    for intents in (m.get("recall_by_intent") or {} for m in metrics):
        for intent, found in intents.items():
            lost[intent] += found["n"] - found["hits"]
            asked[intent] += found["n"]
    return ", ".join(f"{k} {n} of {asked[k]}" for k, n in lost.most_common() if n)


def summarize(results: list[dict[str, Any]]) -> str:
    """Every trial's recommended and last checkpoint, the trials together, the correlations."""
    pick: Callable[[dict[str, Any]], dict[str, Any]] = trials.recommended
    rows = []
    for r in results:
        rows.append(_row(r, pick(r)))
        if trials.final(r)["step"] != pick(r)["step"]:
            rows.append(_row(r, trials.final(r)))
    together: list[list[str]] = []
    missed: list[str] = []
    for model, recipe in dict.fromkeys((r["model"], r["regime"]) for r in results):
        mine = [pick(r) for r in results if (r["model"], r["regime"]) == (model, recipe)]
        metrics = [m["metrics"] for m in mine]
        verdicts = Counter(m["verdict"] for m in mine)
        locales = dict.fromkeys(k for m in metrics for k in m.get("recall_by_locale") or {})
        together.append(
            [
                Path(model).name,
                recipe,
                trials.pooled(metrics, "recall"),
                "; ".join(f"{k} {_part(metrics, 'recall_by_locale', k)}" for k in locales),
                *(trials.pooled(metrics, k) for k in ("leak", "near_miss_leak", "old")),
                *(_range(metrics, path) for path in ("ppl_ratio", "top1_agreement")),
                ", ".join(f"{v} {n}" for v, n in verdicts.most_common()),
            ]
        )
        missed.append(f"{Path(model).name}, {recipe}: {_missed(metrics)}")
    return "\n\n".join(
        [
            trials.table(HEAD, rows),
            "Together (recommended checkpoints):",
            trials.table([*HEAD[:2], "recall", "by language", *HEAD[7:10], *HEAD[11:]], together),
            "Held-out wordings missed, by intent:\n" + "\n".join(missed),
            "Spearman's rank correlation over all checkpoints (number of them):",
            trials.table(["by teacher forcing", *SWEPT], correlations(results)),
        ]
    )


def main() -> int:
    """Run, print, write; exit status 1 if a trial failed."""
    parser = trials.arguments(__doc__, "recipes")
    parser.add_argument("--models", nargs="+", default=["bundled"], help="instead of --model")
    parser.add_argument("--recipe", action="append", help="NAME=SETTING,...", default=None)
    parser.add_argument("--personas", nargs="+", choices=trials.PERSONAS, default=["Luna"])
    args = parser.parse_args()
    args.recipe = args.recipe or ["default="]
    return trials.run_benchmark("recipe_trials", args, plan, summarize)


if __name__ == "__main__":
    raise SystemExit(main())
