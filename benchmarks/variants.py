"""Which defaults? Settings of the dataset and of the run against the app's own, over personas.

    python benchmarks/variants.py \\
        --variant now= \\
        --variant wide=train.lora_r=64,train.lora_alpha=128 \\
        --variant fewer=data.max_rows=200,data.near_miss_ratio=1.6

A variant is a name and the settings that it changes: ``data.*`` of ``DatasetSpec``, ``train.*`` of
``TrainSpec``; all others stay the app's defaults. Reported is the recommended checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import persona_trials as trials
from benchmarks.persona_trials import Trial


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
            raise ValueError(
                f"{one!r} in variant {name!r}: write data.KEY=VALUE or train.KEY=VALUE"
            )
        found[part][field] = json.loads(value)
    return name, found


def plan(args: Any) -> list[Trial]:
    """Variant by persona by seed."""
    return [
        Trial(
            f"{name}-{persona}-{seed}".lower(),
            persona,
            seed,
            name,
            {**changed["data"], **({"max_rows": 20} if args.toy else {})},
            {**changed["train"], **({"steps": 4, "checkpoint_every": 2} if args.toy else {})},
            size="smoke" if args.toy else "sweep",
        )
        for name, changed in map(settings, args.variant)
        for persona in args.personas
        for seed in range(1 if args.toy else args.seeds)
    ]


def summarize(results: list[dict[str, Any]]) -> str:
    """Every trial, then each variant's trials together."""
    rows = [
        [r["regime"], r["persona"], str(r["seed"]), *trials.cells(trials.recommended(r))]
        for r in results
    ]
    together = []
    for variant in dict.fromkeys(r["regime"] for r in results):
        mine = [trials.recommended(r) for r in results if r["regime"] == variant]
        metrics = [m["metrics"] for m in mine]
        verdicts = Counter(m["verdict"] for m in mine)
        together.append(
            [
                variant,
                *(trials.pooled(metrics, k) for k in ("recall", "leak", "near_miss_leak")),
                ", ".join(f"{v} {n}" for v, n in verdicts.most_common()),
            ]
        )
    return (
        trials.table(["variant", "persona", "seed", *trials.HEAD], rows)
        + "\n\nTogether:\n\n"
        + trials.table(["variant", "recall", "leak", "near-miss leak", "verdicts"], together)
    )


def main() -> int:
    """Run, print, write; exit status 1 if a trial failed."""
    parser = trials.arguments(__doc__, "variants")
    parser.add_argument("--variant", action="append", required=True, help="NAME=SETTING,...")
    parser.add_argument(
        "--personas", nargs="+", choices=trials.PERSONAS, default=list(trials.PERSONAS)
    )
    return trials.run_benchmark("variants", parser.parse_args(), plan, summarize)


if __name__ == "__main__":
    raise SystemExit(main())
