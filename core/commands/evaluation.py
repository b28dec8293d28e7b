"""Commands: ``score``, ``sweep``, ``report``, ``probe``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from core import fsio
from core.commands.follow import complete
from core.commands.located import located
from core.evaluation import report
from core.evaluation.score_job import ScoreSpec
from core.evaluation.sweep_job import SweepSpec
from core.paths import RunPaths


def register(commands: Any) -> None:
    """Add the commands of this package."""
    score = commands.add_parser("score", help="score a tuned model against its base")
    score.add_argument(
        "--base", type=located, default="bundled", help="bundled, a folder or a hub id"
    )
    score.add_argument("--merged", type=located, help="folder of the merged model")
    score.add_argument("--adapter", type=located, help="folder of a PEFT adapter")
    score.add_argument("--dataset", required=True, help="dataset folder (persona and probes)")
    score.add_argument("--size", default="quick", choices=("smoke", "quick", "full"))
    score.add_argument("--output", required=True, type=Path, help="folder for the scorecard")
    score.set_defaults(run=_score)
    report = commands.add_parser("report", help="scorecard(s) as one HTML file")
    report.add_argument("scorecard", nargs="+", type=Path, help="one scorecard.json, or two")
    report.add_argument("--output", required=True, type=Path, help="HTML file to write")
    report.set_defaults(run=_report)
    sweep = commands.add_parser("sweep", help="score every checkpoint of a run, name the best")
    sweep.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a training run")
    sweep.add_argument(
        "--base", type=located, default="bundled", help="bundled, a folder or a hub id"
    )
    sweep.add_argument("--dataset", required=True, help="dataset folder (persona and probes)")
    sweep.add_argument("--size", default="sweep", choices=("smoke", "sweep", "quick", "full"))
    sweep.add_argument(
        "--stop",
        action="store_true",
        help="end at the first that passes; a run that still trains is stopped",
    )
    sweep.add_argument(
        "--follow", action="store_true", help="wait for the checkpoints of a run that still trains"
    )
    sweep.add_argument(
        "--candidates",
        action="store_true",
        help="only the few checkpoints that the figures of training leave, the likeliest first",
    )
    sweep.set_defaults(run=_sweep)
    probe = commands.add_parser("probe", help="check a model with your own questions (for CI)")
    probe.add_argument("probes", type=Path, help="YAML file of questions, see docs/probes.md")
    probe.add_argument(
        "--model", type=located, default="bundled", help="bundled, a folder or a hub id"
    )
    probe.add_argument("--adapter", type=Path, help="PEFT adapter to attach")
    probe.add_argument("--max-new-tokens", type=int, default=128)
    probe.add_argument("--json", type=Path, help="write the outcomes to this file too")
    probe.set_defaults(run=_probe)


def progress_line(stage: str, done: int, total: int) -> None:
    """One line on stderr, overwritten in a terminal."""
    end = "\r" if sys.stderr.isatty() else "\n"
    if sys.stderr.isatty() or done in (0, total):
        print(f"{stage}: {done}/{total or '?'}".ljust(60), end=end, file=sys.stderr, flush=True)


def _score(args: argparse.Namespace) -> int:
    spec = ScoreSpec(
        base=args.base,
        merged=args.merged and str(Path(args.merged).resolve()),
        adapter=args.adapter and str(Path(args.adapter).resolve()),
        dataset=str(Path(args.dataset).resolve()),
        size=args.size,
        out=str(args.output.resolve()),
    )
    result = complete(spec, f"score {args.output.resolve().name}")
    print_card(fsio.read_json(Path(result["scorecard"])))
    print(f"\n{result['scorecard']}\n{result['report']}")
    return 0 if result["verdict"] == "LEARNED" else 1


def print_card(card: dict[str, Any]) -> None:
    """The verdict, the gates and the metrics, for a terminal."""
    print(
        f"\n{card['verdict']}: {card['explanation']['why']}\nnext: {card['explanation']['next']}\n"
    )
    gates = card["explanation"]["gates"]
    wide = max((len(gate["title"]) for gate in gates), default=0) + 2
    for gate in gates:
        print(f"  {gate['outcome']:8}{gate['title']:{wide}}{gate['shown']:32}limit {gate['limit']}")
    print()
    rows = report.table([card])
    wide = max((len(str(row["metric"])) for row in rows), default=0) + 2
    for row in rows:
        print(
            "  "
            + row["metric"].ljust(wide)
            + "".join(str(v).ljust(32) for k, v in row.items() if k != "metric")
        )
    for note in card["notes"]:
        print(f"note: {note}")


def _report(args: argparse.Namespace) -> int:
    print(report.write_html(args.scorecard, args.output))
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from core.evaluation import choice, sweep
    from core.evaluation.scored import passes

    run = RunPaths(args.run_dir.resolve())
    spec = SweepSpec(
        run=str(run.root),
        base=args.base,
        dataset=str(Path(args.dataset).resolve()),
        size=args.size,
        steps=tuple(choice.candidates(run)) if args.candidates else (),
        stop_when_passed=args.stop,
        follow=args.follow and sweep.is_training(run),
    )
    found = complete(spec, f"sweep {run.root.name}", parent=run.root.name)
    print(f"\n{'step':>6}  {'recall':26}{'leak':26}{'KL':>8}  verdict")
    best = (found["recommended"] or {}).get("step")
    for row in found["checkpoints"]:
        kl = (row["metrics"].get("kl_general") or {}).get("kl")
        mark = " <- recommended" if row["step"] == best else ""
        print(
            f"{row['step']:>6}  {_rate(row['metrics']['recall']):26}"
            f"{_rate(row['metrics']['leak']):26}"
            f"{'' if kl is None else format(kl, '.3f'):>8}  {row['verdict']}{mark}"
        )
    for step in found["skipped"]:
        print(f"{step:>6}  not scored")
    for note in found["notes"]:
        print(f"note: {note}")
    print(f"{found['reason']}\n{run.root / sweep.FILE}")
    return 0 if any(passes(row["gates"]) for row in found["checkpoints"]) else 1


def _rate(value: dict[str, Any]) -> str:
    return f"{value['hits']}/{value['n']} ({value['low']:.0%} to {value['high']:.0%})"


def _probe(args: argparse.Namespace) -> int:
    from core.evaluation import userprobes
    from core.models import catalog

    users = userprobes.read(args.probes)
    outcomes = userprobes.run(
        catalog.resolve(args.model).path,
        users,
        adapter=args.adapter,
        max_new_tokens=args.max_new_tokens,
        on_progress=progress_line,
    )
    for outcome in outcomes:
        print(f"{'ok  ' if outcome.passed else 'FAIL'}  {outcome.probe.messages[-1]['content']}")
        if not outcome.passed:
            print(f"      reply {outcome.problem}: {outcome.reply[:200]!r}")
    failed = sum(not o.passed for o in outcomes)
    print(f"{len(outcomes) - failed} of {len(outcomes)} passed")
    if args.json:
        rows = [
            {
                "id": o.probe.id,
                "prompt": o.probe.messages[-1]["content"],
                "reply": o.reply,
                "passed": o.passed,
                "problem": o.problem,
            }
            for o in outcomes
        ]
        fsio.write_json(args.json, {"schema": 1, "passed": not failed, "probes": rows})
    return 1 if failed else 0
