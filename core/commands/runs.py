"""``python -m core train | resume | stop | runs | watch``: the Train page from a terminal."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from core import fsio
from core.commands.located import located
from core.console import ProgressLine
from core.errors import UserError
from core.jobs import api
from core.jobs.journal import read_journal
from core.jobs.state import ACTIVE, State, Status, Summary
from core.models.device import describe
from core.paths import DatasetPaths, RunPaths
from core.training import figures
from core.training.lifecycle import resume_training, start_training


def register(commands: Any) -> None:
    """Add the five commands."""
    train = commands.add_parser("train", help="start a QLoRA run and watch it")
    train.add_argument("dataset", type=Path, help="dataset folder")
    train.add_argument(
        "--model", type=located, default="bundled", help="bundled, a folder or a hub id"
    )
    train.add_argument("--config", type=Path, help="an edited config file, used as it is")
    _run_options(train)
    train.set_defaults(run=_train)

    resume = commands.add_parser("resume", help="go on from a checkpoint, as a new run")
    resume.add_argument("of", metavar="RUN", help="run id, its beginning, or 'latest'")
    resume.add_argument("--step", type=int, help="checkpoint; the newest whole one if not given")
    _run_options(resume)
    resume.set_defaults(run=_resume)

    stop = commands.add_parser("stop", help="stop a run")
    stop.add_argument("of", metavar="RUN", help="run id, its beginning, or 'latest'")
    stop.add_argument("--force", action="store_true", help="do not give it time to end by itself")
    stop.set_defaults(run=_stop)

    runs = commands.add_parser("runs", help="list runs, newest first")
    runs.add_argument("--json", action="store_true", help="one JSON object a line")
    runs.add_argument("--active", action="store_true", help="only those that are alive")
    runs.add_argument("-n", type=int, default=20, help="at most so many (default 20, 0: all)")
    runs.set_defaults(run=_runs)

    watch = commands.add_parser("watch", help="follow a run until it is over")
    watch.add_argument(
        "of",
        metavar="RUN",
        nargs="?",
        default="latest",
        help="run id, its beginning, or 'latest' (the default)",
    )
    watch.set_defaults(run=lambda args: _follow(api.open_run(args.of)))


def _run_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", help="what to call the run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="settings",
        help="a training setting, e.g. lr=5e-4; may be repeated",
    )
    parser.add_argument("--detach", action="store_true", help="start it and return at once")


def _train(args: argparse.Namespace) -> int:
    from core.training.defaults import choose
    from core.training.preflight import preflight
    from core.training.spec_fields import parse_assignment

    settings = dict(map(parse_assignment, args.settings))
    if args.config is not None:
        settings["config_text"] = _read_text(args.config)
    dataset = args.dataset.resolve()
    if not DatasetPaths(dataset).train.is_file():  # before a minute goes into a model
        raise UserError(
            f"{args.dataset} is not a dataset",
            why="it has no train.jsonl",
            fix="build one: python -m core dataset build --help",
        )
    spec, choices = choose(str(dataset), args.model, describe(), settings)
    for choice in choices:
        print(f"  {choice.name} = {choice.value}: {choice.reason}", file=sys.stderr)
    found = preflight(spec)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    run = start_training(found, name=args.name or args.dataset.name)
    return _report(run, args.detach)


def _resume(args: argparse.Namespace) -> int:
    from core.training.spec_fields import parse_assignment

    settings = dict(map(parse_assignment, args.settings))
    run = resume_training(api.open_run(args.of), args.step, name=args.name, changes=settings)
    return _report(run, args.detach)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}", why=str(error)) from error


def _report(run: RunPaths, detach: bool) -> int:
    print(run.root.name)
    return 0 if detach else _follow(run)


def _stop(args: argparse.Namespace) -> int:
    run = api.open_run(args.of)
    before = api.status(run)
    if before.final:
        print(f"{before.id} is over already: {before.state}")
        return 0
    api.stop(run, force=args.force)
    if before.state is State.CREATED:
        print(f"{before.id} will not be started")
        return 0
    deadline = time.monotonic() + 60
    while not (now := api.status(run)).final:
        if time.monotonic() > deadline:
            raise UserError(
                f"{now.id} is {now.state} after a minute",
                fix=f"python -m core stop {now.id} --force",
            )
        time.sleep(0.2)
    print(f"{now.id}: {now.state}")
    return 0


def _runs(args: argparse.Namespace) -> int:
    found = [s for s in api.list_runs() if s.state in ACTIVE or not args.active]
    shown = found[: args.n] if args.n else found
    for summary in shown:
        print(fsio.dump_json(_as_json(summary)) if args.json else _line(summary))
    if len(shown) < len(found) and not args.json:
        print(f"({len(found) - len(shown)} older; -n 0 lists all)")
    if not found and not args.json:
        print("no runs")
    return 0


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "id": summary.id,
        "name": summary.name,
        "kind": summary.kind,
        "state": summary.state,
        "reason": summary.reason,
        "created": summary.created,
        "parent": summary.parent,
        "elapsed_seconds": summary.elapsed_seconds,
        "path": summary.root,
    }


def _line(summary: Summary) -> str:
    reason = f" ({summary.reason})" if summary.reason else ""
    progress = summary.progress
    count = f"  {progress.done}/{progress.total}" if progress.total else ""
    took = f"  {summary.elapsed_seconds:.0f} s" if summary.elapsed_seconds is not None else ""
    return f"{summary.id}  {summary.kind:<8}  {summary.state}{reason}{count}{took}"


def _follow(run: RunPaths) -> int:
    """Draw progress until the end. Ctrl-C leaves the run alone."""
    line = ProgressLine()
    told = 0

    def update(now: Status) -> None:
        nonlocal told
        for event in read_journal(run.events):
            if event.get("seq", 0) > told:
                told = event["seq"]
                if (look := figures.of_event(event)) is not None:
                    line.note(look.line())
                elif event["event"] in ("warning", "stalled", "queued"):
                    line.note(f"{event['event']}: {event.get('message') or event}")
        line.show(now.kind, now)

    try:
        end = api.wait(run, update)
    except KeyboardInterrupt:
        line.note(
            f"\nthe run goes on; watch it with: python -m core watch {run.root.name}\n"
            f"or stop it with: python -m core stop {run.root.name}"
        )
        return 130
    line.end()
    print(f"{end.state}" + (f" ({end.reason})" if end.reason else ""))
    if end.error is not None:
        print(str(end.error), file=sys.stderr)
    if end.state is State.SUCCEEDED and end.result:
        print(
            fsio.dump_json(
                {k: v for k, v in end.result.items() if k not in ("lr", "figures")}, indent=2
            )
        )
    return 0 if end.state is State.SUCCEEDED else 1
