"""Why the default mix: identity to rehearsal rows at 1:0, 1:1, 1:3, 1:5, three seeds each.

    python benchmarks/mix_sweep.py [--parallel 8] [--output DIR]
    python benchmarks/mix_sweep.py --toy

The number of optimizer steps is the same for all ratios, so that a mix with more rows is not also
trained longer. Reported is the last checkpoint, without the help of the sweep, and then the
recommended one.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import persona_trials as trials
from benchmarks.persona_trials import Trial

RATIOS = (0.0, 1.0, 3.0, 5.0)
STEPS = 96
#: Held fixed, so that a change of the app's defaults does not change what the table compares.
DATA = {"max_rows": 150, "max_new_tokens": 40}
TRAIN = {"lora_r": 16, "lora_alpha": 32}


def plan(args: Any) -> list[Trial]:
    """Ratio by seed. Near-miss rows come with rehearsal: without it there are none."""
    steps = args.steps or (4 if args.toy else STEPS)
    return [
        Trial(
            f"mix-{ratio:g}-{seed}",
            "Luna",
            seed,
            f"1:{ratio:g}",
            {
                "rehearsal_ratio": ratio,
                "near_miss_ratio": 0.5 if ratio else 0.0,
                **({"max_rows": 20} if args.toy else DATA),
            },
            {"steps": steps, "checkpoint_every": max(1, steps // 4), **TRAIN},
            size="smoke" if args.toy else "sweep",
        )
        for ratio in reversed(RATIOS)
        for seed in range(1 if args.toy else args.seeds)
    ]


def summarize(results: list[dict[str, Any]]) -> str:
    """Every trial, then the seeds of a ratio together."""
    rows = [
        [r["regime"], str(r["seed"]), which, *trials.cells(pick(r))]
        for r in results
        for which, pick in (("last", trials.final), ("recommended", trials.recommended))
    ]
    means = []
    for ratio in RATIOS:
        mine = [trials.final(r)["metrics"] for r in results if r["regime"] == f"1:{ratio:g}"]
        if mine:
            means.append(
                [
                    f"1:{ratio:g}",
                    str(len(mine)),
                    *(trials.pooled(mine, k) for k in ("recall", "leak", "near_miss_leak")),
                    f"{statistics.mean(m['unique_ratio'] for m in mine):.2f}",
                ]
            )
    return (
        trials.table(["identity:rehearsal", "seed", "checkpoint", *trials.HEAD], rows)
        + "\n\nThe last checkpoints, all seeds together:\n\n"
        + trials.table(
            ["identity:rehearsal", "seeds", "recall", "leak", "near-miss leak", "unique"], means
        )
    )


def main() -> int:
    """Run, print, write; exit status 1 if a trial failed."""
    args = trials.arguments(__doc__, "mix").parse_args()
    return trials.run_benchmark("mix_sweep", args, plan, summarize, trials.final)


if __name__ == "__main__":
    raise SystemExit(main())
