"""The three regimes told apart: the tutorial's recipe, too few steps, our default.

    python benchmarks/regimes.py [--parallel 8] [--output DIR]
    python benchmarks/regimes.py --toy              # a dry run on a laptop

For three personas and three seeds: copies of one row without rehearsal should be called OVERFIT, a
run of a few steps UNDERFIT, the default LEARNED. Also checked: the recommended checkpoint is never
worse than the last one by the sweep's order of gates.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import persona_trials as trials
from benchmarks.persona_trials import Trial

EXPECTED = {"tutorial": "OVERFIT", "short": "UNDERFIT", "default": "LEARNED"}


def plan(args: Any) -> list[Trial]:
    """All trials, the long ones first so that the processes end together."""
    seeds = range(1 if args.toy else args.seeds)
    personas = list(trials.PERSONAS)[: 1 if args.toy else None]
    size = "smoke" if args.toy else "sweep"
    small = {"max_rows": 20, "rehearsal_ratio": 1.0, "near_miss_ratio": 0.0} if args.toy else {}
    # Rehearsal rows are of no use to copies of one row, so hardly any are made.
    lone = {"max_rows": 60, "rehearsal_ratio": 0.0, "near_miss_ratio": 0.0}
    steps = args.steps or (4 if args.toy else None)
    full: dict[str, Any] = {"steps": steps, "checkpoint_every": max(1, steps // 4)} if steps else {}
    # 48 optimizer steps are what the tutorial's 10,001 copies come to; 16 rows a step.
    copied = 2 if args.toy else 48
    short = 2 if args.toy else 10
    found = []
    for regime, data, train, copies in (
        ("default", small, full, 0),
        ("tutorial", lone, {"steps": copied, "checkpoint_every": copied // 2}, 16 * copied),
        ("short", small, {"steps": short, "checkpoint_every": short}, 0),
    ):
        for persona in personas:
            for seed in seeds:
                name = f"{regime}-{persona}-{seed}".lower()
                found.append(
                    Trial(name, persona, seed, regime, dict(data), dict(train), copies, size)
                )
    return found


def summarize(results: list[dict[str, Any]]) -> str:
    """One table of the trials and three lines of what follows."""
    rows = []
    for r in results:
        for which, row in (("last", trials.final(r)), ("recommended", trials.recommended(r))):
            if which == "last" or row["step"] != trials.final(r)["step"]:
                rows.append([r["regime"], r["persona"], str(r["seed"]), which, *trials.cells(row)])
    text = trials.table(["regime", "persona", "seed", "checkpoint", *trials.HEAD], rows)
    lines = []
    for regime, expected in EXPECTED.items():
        mine = [r for r in results if r["regime"] == regime]
        verdicts = Counter(trials.recommended(r)["verdict"] for r in mine)
        said = ", ".join(f"{v} {n}" for v, n in verdicts.most_common())
        lines.append(f"{regime}: expected {expected}; recommended checkpoints are {said or 'none'}")
    worse = [
        r["name"]
        for r in results
        if trials.order(trials.recommended(r)) > trials.order(trials.final(r))
        and not all(g["outcome"] == "pass" for g in trials.recommended(r)["gates"] if g["required"])
    ]
    lines.append(
        f"recommended worse than last: {', '.join(worse) or 'never'} (of {len(results)} runs)"
    )
    device = {r["device"] for r in results}
    lines.append(f"device: {', '.join(sorted(device))}")
    return text + "\n\n" + "\n".join(lines)


def main() -> int:
    """Run, print, write; exit status 1 if a trial failed."""
    args = trials.arguments(__doc__, "regimes").parse_args()
    return trials.run_benchmark("regimes", args, plan, summarize)


if __name__ == "__main__":
    raise SystemExit(main())
