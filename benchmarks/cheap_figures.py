"""Do the figures of training foretell the sweep? Rank correlation, and how often the choice holds.

    python benchmarks/cheap_figures.py --models bundled DIR --personas Luna Orlin Tamsin --seeds 3
    python benchmarks/cheap_figures.py --results work/recipe_trials.json   # trials that were run

Trials as in ``recipe_trials.py`` (same options), with eight checkpoints each unless a recipe says
otherwise, and a full sweep of all of them. Printed:

- Spearman's rank correlation between each cheap figure and each of the sweep's, over the
  checkpoints of one run (mean over the runs) and over all checkpoints of a model;
- how often the first of ``choice.worth_a_sweep`` is the sweep's recommended checkpoint, how often
  the recommended one is among those that it leaves, and how many it leaves;
- what is lost: the recall and leak of the checkpoint that ``tune`` would merge, beside those of the
  sweep's recommended one.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import persona_trials as trials
from benchmarks import recipe_trials
from benchmarks.persona_trials import Trial
from benchmarks.recipe_trials import SWEPT, look
from core.evaluation.choice import worth_a_sweep
from core.training.figures import Figures

Result = dict[str, Any]
Cheap = Callable[[Figures], float | None]

CHEAP: dict[str, Cheap] = {
    "margin": lambda f: f.margin,
    "ahead": lambda f: f.ahead,
    "KL": lambda f: f.kl,
    "ppl ratio": lambda f: f.ppl_ratio,
    "agreement": lambda f: f.agreement,
}
_CHECKPOINTS = 8


def plan(args: Any) -> list[Trial]:
    """Those of ``recipe_trials``, with more checkpoints."""
    found = []
    for trial in recipe_trials.plan(args):
        steps = trial.train.get("steps") or args.steps
        every = {} if args.toy or not steps else {"checkpoint_every": max(1, steps // _CHECKPOINTS)}
        found.append(
            Trial(**{**vars(trial), "train": {"checkpoint_every": 15, **every, **trial.train}})
        )
    return found


def figures(result: Result) -> dict[int, Figures]:
    """What training wrote, by step."""
    return {f["step"]: Figures.from_values(f["step"], f["values"]) for f in result["figures"]}


def rows(result: Result) -> list[tuple[Figures, dict[str, Any]]]:
    """(figures, the sweep's metrics) of each checkpoint that has both."""
    found = figures(result)
    return [
        (found[c["step"]], c["metrics"])
        for c in result["sweep"]["checkpoints"]
        if c["step"] in found
    ]


def correlation(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Spearman's; None where there are too few or all are equal."""
    from scipy.stats import spearmanr

    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < 4 or any(len(set(column)) < 2 for column in zip(*known, strict=True)):
        return None
    return float(spearmanr([a for a, _ in known], [b for _, b in known]).statistic)


def correlations(results: Sequence[Result]) -> list[list[str]]:
    """One row a cheap figure; in each cell the mean over the runs, and over all checkpoints."""
    table = []
    for name, cheap in CHEAP.items():
        cells = [name]
        for swept in SWEPT:
            by_run = [[(cheap(f), look(m, swept)) for f, m in rows(r)] for r in results]
            each = [c for pairs in by_run if (c := correlation(pairs)) is not None]
            whole = correlation([pair for pairs in by_run for pair in pairs])
            mean = f"{statistics.mean(each):+.2f} ({len(each)} runs)" if each else "-"
            cells.append(f"{mean}; all {'-' if whole is None else f'{whole:+.2f}'}")
        table.append(cells)
    return table


def chosen(result: Result) -> dict[str, Any]:
    """What the rule leaves of a run, and what ``tune`` would merge of it."""
    by_step = {c["step"]: c for c in result["sweep"]["checkpoints"]}
    left = worth_a_sweep(sorted(by_step), list(figures(result).values()))
    passing = [s for s in left if all(g["outcome"] == "pass" for g in _required(by_step[s]))]
    merged = passing[0] if passing else min(left, key=lambda s: trials.order(by_step[s]))
    best = result["sweep"]["recommended"]["step"]
    return {"left": left, "merged": by_step[merged], "best": by_step[best]}


def _required(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [g for g in row["gates"] if g["required"]]


def summarize(results: list[Result]) -> str:
    """A block a model."""
    by_model: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.get("figures"):
            by_model[Path(result["model"]).name].append(result)
    return "\n\n".join(_block(model, mine) for model, mine in by_model.items())


def _block(model: str, results: list[Result]) -> str:
    picks = [chosen(r) for r in results]
    n = len(picks)
    first = sum(p["left"][0] == p["best"]["step"] for p in picks)
    among = sum(p["best"]["step"] in p["left"] for p in picks)
    same = sum(p["merged"]["step"] == p["best"]["step"] for p in picks)
    detail = [
        [
            r["persona"],
            str(r["seed"]),
            ", ".join(map(str, p["left"])),
            *trials.cells(p["merged"])[:4],
            p["merged"]["verdict"],
            *trials.cells(p["best"])[:4],
            p["best"]["verdict"],
        ]
        for r, p in zip(results, picks, strict=True)
    ]
    columns = ("step", "recall", "leak", "near-miss", "verdict")
    head = ["persona", "seed", "left to sweep"]
    head += [f"merged: {c}" for c in columns] + [f"best: {c}" for c in columns]
    left = statistics.mean(len(p["left"]) for p in picks)
    swept = statistics.mean(len(r["sweep"]["checkpoints"]) for r in results)
    return "\n\n".join(
        [
            f"{model}, {n} runs. The first of the rule is the sweep's recommended checkpoint in "
            f"{first} of {n}, the recommended one is among those left in {among} of {n}; "
            f"{left:.1f} of {swept:.1f} checkpoints are left to sweep. What tune merges is the "
            f"sweep's in {same} of {n}.",
            trials.table(["cheap figure", *SWEPT], correlations(results)),
            trials.table(head, detail),
        ]
    )


def main() -> int:
    """Run or read, print, write; exit status 1 if a trial failed."""
    parser = trials.arguments(str(__doc__), "cheap")
    parser.add_argument("--models", nargs="+", default=["bundled"], help="instead of --model")
    parser.add_argument("--recipe", action="append", help="NAME=SETTING,...", default=None)
    parser.add_argument("--personas", nargs="+", choices=trials.PERSONAS, default=["Luna"])
    parser.add_argument("--results", nargs="+", type=Path, help="JSON of trials that were run")
    args = parser.parse_args()
    args.recipe = args.recipe or ["default="]
    if args.results:
        read = [json.loads(path.read_text(encoding="utf-8"))["results"] for path in args.results]
        print(summarize([one for part in read for one in part]))
        return 0
    return trials.run_benchmark("cheap_figures", args, plan, summarize)


if __name__ == "__main__":
    raise SystemExit(main())
