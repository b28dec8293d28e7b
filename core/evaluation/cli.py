"""Commands: ``score``, ``sweep``, ``report``, ``probe``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def register(commands: Any) -> None:
    """Add the commands of this package."""
    score = commands.add_parser("score", help="score a tuned model against its base")
    score.add_argument("--base", default="bundled", help="bundled, a folder or a hub id")
    score.add_argument("--merged", help="folder of the merged model")
    score.add_argument("--adapter", help="folder of a PEFT adapter")
    score.add_argument("--dataset", required=True, help="dataset folder (persona and probes)")
    score.add_argument("--size", default="quick", choices=("smoke", "quick", "full"))
    score.add_argument("--output", required=True, type=Path, help="folder for the scorecard")
    score.set_defaults(run=_score)
    report = commands.add_parser("report", help="scorecard(s) as one HTML file")
    report.add_argument("scorecard", nargs="+", type=Path, help="one scorecard.json, or two")
    report.add_argument("--output", required=True, type=Path, help="HTML file to write")
    report.set_defaults(run=_report)


def progress_line(stage: str, done: int, total: int) -> None:
    """One line on stderr, overwritten in a terminal."""
    end = "\r" if sys.stderr.isatty() else "\n"
    if sys.stderr.isatty() or done in (0, total):
        print(f"{stage}: {done}/{total or '?'}".ljust(60), end=end, file=sys.stderr, flush=True)


def _score(args: argparse.Namespace) -> int:
    from core.evaluation import job, report, scorecard

    params = {
        "base": args.base,
        "merged": args.merged,
        "adapter": args.adapter,
        "dataset": args.dataset,
    }
    card = scorecard.evaluate(
        job.sides(params), job.dataset_of(params), size=args.size, on_progress=progress_line
    )
    saved = card.save(args.output)
    page = report.write_html([saved], args.output / "report.html")
    print_card(card.to_json())
    print(f"\n{saved}\n{page}")
    return 0 if card.verdict.name == "LEARNED" else 1


def print_card(card: dict[str, Any]) -> None:
    """The verdict, the gates and the metrics, for a terminal."""
    from core.evaluation import report

    print(
        f"\n{card['verdict']}: {card['explanation']['why']}\nnext: {card['explanation']['next']}\n"
    )
    for gate in card["explanation"]["gates"]:
        print(f"  {gate['outcome']:8}{gate['title']:48}{gate['shown']:32}limit {gate['limit']}")
    print()
    for row in report.table([card]):
        print(
            "  "
            + row["metric"].ljust(50)
            + "".join(str(v).ljust(32) for k, v in row.items() if k != "metric")
        )
    for note in card["notes"]:
        print(f"note: {note}")


def _report(args: argparse.Namespace) -> int:
    from core.evaluation import report

    print(report.write_html(args.scorecard, args.output))
    return 0
