"""The main job in one command: dataset, training, convert and merge, scorecard.

Each stage is the same job that the pages start, kept under the output folder, so a run that was
interrupted goes on with the first stage that has no checked result.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from core import fsio, paths
from core.console import ProgressLine
from core.errors import UserError

STAGES = ("dataset", "train", "merge", "evaluate")
_SPEC = "tune.json"
_SIZE = "quick"


@dataclass(frozen=True)
class TuneSpec:
    """What was asked for. Written to ``tune.json``; ``--resume`` refuses another one."""

    persona: str
    overrides: dict[str, str] = field(default_factory=dict)
    model: str = "bundled"
    seed: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TunePaths:
    """Where the stages of one tune keep their results."""

    root: Path

    @property
    def spec(self) -> Path:
        """The TuneSpec."""
        return self.root / _SPEC

    @property
    def dataset(self) -> Path:
        """Conversations, probes and the filled persona."""
        return self.root / "dataset"

    @property
    def merged(self) -> Path:
        """The model folder to ship."""
        return self.root / "merged"

    @property
    def adapter(self) -> Path:
        """The PEFT adapter of the checkpoint that was merged."""
        return self.root / "adapter"

    @property
    def scorecard(self) -> Path:
        """The numbers: see docs/results.md for its fields."""
        return self.root / "scorecard.json"

    def run(self, stage: str) -> Path:
        """The run directory of a stage."""
        return self.root / "runs" / stage


def prepare(spec: TuneSpec, output: Path, *, resume: bool) -> TunePaths:
    """Check everything that can be checked before work starts; nothing is written if it fails.

    Raises:
        UserError: the persona or model is unusable, the output folder exists (or, with
            ``resume``, was made from another request), or the disk is too small.
    """
    from core.models import catalog, folder
    from core.persona.persona import load_persona
    from core.training.base import require_trainable

    out = TunePaths(output.resolve())
    load_persona(Path(spec.persona), spec.overrides)
    if resume:
        _check_same(spec, out)
    elif output.exists():
        raise UserError(
            f"output folder {output} exists",
            why="a tune never writes over an earlier one",
            fix="choose another --output, or add --resume to go on with that one",
        )
    model = catalog.resolve(spec.model)
    require_trainable(model.path)
    weights = sum(f.stat().st_size for f in folder.weight_files(model.path))
    # The merged copy, the checkpoints (adapters with optimizer state), the dataset; 20 % spare.
    fsio.require_space(output.parent, int(1.2 * (weights + 500_000_000)), "a tuned model")
    out.root.mkdir(parents=True, exist_ok=True)
    fsio.write_json(out.spec, {"schema": 1, **asdict(spec)})
    return out


def _check_same(spec: TuneSpec, out: TunePaths) -> None:
    if not out.spec.is_file():
        raise UserError(
            f"{out.root} holds no tune to resume",
            why=f"it has no {_SPEC}",
            fix="leave --resume out and give a new --output",
        )
    before = fsio.read_json(out.spec)
    changed = [k for k, v in asdict(spec).items() if before.get(k) != fsio.jsonable(v)]
    if changed:
        raise UserError(
            f"{out.root} was made with other settings",
            why=f"different: {', '.join(changed)}",
            fix="give the same arguments, or start anew in another --output",
        )


def tune(
    spec: TuneSpec, output: Path, *, resume: bool = False, line: ProgressLine | None = None
) -> dict[str, Any]:
    """Run all stages and return the scorecard that was written to ``output/scorecard.json``.

    Raises:
        UserError: an input is unusable or a stage failed; what is finished stays.
    """
    out = prepare(spec, output, resume=resume)
    line = line or ProgressLine()
    dataset = _stage(out, "dataset", "generate", _dataset_params(spec, out), line)
    train = _stage(out, "train", "train", _train_params(spec, out), line)
    merge = _stage(out, "merge", "merge", _merge_params(spec, out, train), line)
    _stage(out, "evaluate", "evaluate", _evaluate_params(spec, out), line)
    card: dict[str, Any] = fsio.read_json(out.scorecard)
    proof = merge["result"]["proof"]
    card["seconds"] = {
        "dataset": dataset["seconds"],
        "train": train["seconds"],
        "convert": merge["result"]["seconds"]["convert"],
        "merge": merge["result"]["seconds"]["merge"] + merge["result"]["seconds"]["prove"],
        "evaluate": fsio.read_json(out.run("evaluate") / "stage.json")["seconds"],
    }
    card["merge_check"] = proof
    fsio.write_json(out.scorecard, card)
    return card


def _dataset_params(spec: TuneSpec, out: TunePaths) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "spec": {
            "persona_path": spec.persona,
            "overrides": spec.overrides,
            "model": spec.model,
            "seed": spec.seed,
            **spec.dataset,
        },
        "out": str(out.dataset),
    }


def _train_params(spec: TuneSpec, out: TunePaths) -> Callable[[], dict[str, Any]]:
    def params() -> dict[str, Any]:
        from core.models.device import describe
        from core.training.defaults import choose

        train, _ = choose(
            str(out.dataset), spec.model, describe(), {"seed": spec.seed, **spec.training}
        )
        return train.to_dict()

    return params


def _merge_params(
    spec: TuneSpec, out: TunePaths, train: Mapping[str, Any]
) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "base": spec.model,
        "checkpoint": train["result"]["final"],
        "config": str(paths.RunPaths(out.run("train")).config),
        "adapter_out": str(out.adapter),
        "out": str(out.merged),
        "dataset": str(out.dataset),
    }


def _evaluate_params(spec: TuneSpec, out: TunePaths) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "base": spec.model,
        "merged": str(out.merged),
        "dataset": str(out.dataset),
        "size": "quick",
        "out": str(out.root),
    }


def _stage(
    out: TunePaths, stage: str, kind: str, params: Callable[[], dict[str, Any]], line: ProgressLine
) -> dict[str, Any]:
    """Run one stage as a job, unless it has a checked result already.

    Returns:
        ``{"seconds": wall time of the stage, "result": what the job returned}``.
    """
    from core.jobs import api

    done = out.run(stage) / "stage.json"
    if done.is_file():
        record: dict[str, Any] = fsio.read_json(done)
        line.finished(stage, record["seconds"], note="from the earlier run")
        return record
    started = time.monotonic()
    run = _fresh_run(out, stage, kind, params())
    api.start(run)
    try:
        status = api.wait(run, on_update=lambda s: line.show(stage, s))
    except KeyboardInterrupt:
        line.note(f"stopping {stage}")
        api.stop(run)
        api.wait(run)
        raise
    if status.state != "SUCCEEDED":
        line.end()
        raise status.error or UserError(
            f"{stage} ended as {status.state}",
            why=status.reason or "",
            fix=f"read {paths.RunPaths(run.root).log}",
        )
    record = {"schema": 1, "seconds": round(time.monotonic() - started, 1), "result": status.result}
    fsio.write_json(done, record)
    line.finished(stage, record["seconds"])
    return record


def _fresh_run(out: TunePaths, stage: str, kind: str, params: dict[str, Any]) -> paths.RunPaths:
    """A new run directory; an unfinished one of an earlier try is kept beside it."""
    from core.jobs import api

    target = out.run(stage)
    if target.exists():
        attempts = len(list(target.parent.glob(f"{stage}.try*")))
        target.rename(target.with_name(f"{stage}.try{attempts + 1}"))
    return api.create(kind, params, name=stage, run_dir=target)


def register(commands: Any) -> None:
    """Add the ``tune`` command."""
    parser = commands.add_parser(
        "tune",
        help="persona file in, tuned and scored model out",
        description="Build the dataset, train, convert, merge, prove and score.",
    )
    parser.add_argument("persona", metavar="PERSONA.yaml", help="a pack from data_templates/")
    parser.add_argument(
        "--set",
        metavar="SLOT=VALUE",
        action="append",
        default=[],
        dest="slots",
        help="fill a slot of the persona, e.g. name=Luna (repeatable)",
    )
    parser.add_argument("--model", default="bundled", help="bundled, a folder or a hub id")
    parser.add_argument("--output", type=Path, help="a new folder (default: a new one in runs)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted --output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="optimizer steps (default: from the dataset)")
    parser.set_defaults(run=_run)


def parse_slots(pairs: list[str]) -> dict[str, str]:
    """``["name=Luna"]`` -> ``{"name": "Luna"}``.

    Raises:
        UserError: a pair has no '=' or no slot name.
    """
    slots = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"--set {pair!r} is not SLOT=VALUE", fix="write it as --set name=Luna")
        slots[name.strip()] = value
    return slots


def _run(args: argparse.Namespace) -> int:
    slots = parse_slots(args.slots)
    spec = TuneSpec(
        persona=str(Path(args.persona).resolve()),
        overrides=slots,
        model=args.model,
        seed=args.seed,
        training={"steps": args.steps} if args.steps else {},
    )
    if args.resume and not args.output:
        raise UserError("--resume needs the --output of the interrupted tune")
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-tune-{fsio.slug(slots.get('name', 'persona'))}"
    output = args.output or paths.runs_dir() / stem
    try:
        card = tune(spec, output, resume=args.resume)
    except KeyboardInterrupt:
        print(f"\nstopped; finished stages are kept in {output}")
        print(
            "go on with the same command and --resume"
            + ("" if args.output else f" --output {output}")
        )
        return 130
    _print_card(card, output)
    return 0


def _print_card(card: dict[str, Any], output: Path) -> None:
    print(f"\nverdict: {card['verdict']}")
    for name in ("base", "merged"):
        scores = card["models"][name]
        recall, leak = scores["recall"], scores["leak"]
        print(
            f"  {name:7} recall {recall['hits']}/{recall['n']} held-out wordings, "
            f"leak {leak['hits']}/{leak['n']} general prompts"
        )
    check = card["merge_check"]
    print(
        f"  merge   largest logit difference {check['max_abs_logit_diff']:.2g}, "
        f"same greedy replies: {'yes' if check['same_greedy'] else 'NO'}"
    )
    seconds = card["seconds"]
    print(
        f"  time    {sum(seconds.values()) / 60:.1f} min ("
        + ", ".join(f"{k} {v:.0f} s" for k, v in seconds.items())
        + ")"
    )
    print(
        f"model folder: {output / 'merged'}\nchat with it: "
        f"python -m core compare --merged {output / 'merged'}, or `make run` and open Compare"
    )
