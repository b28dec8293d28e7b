"""``python -m core tune``: the main job in one command."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from core import fsio, paths
from core.commands.located import located
from core.commands.pairs import parse_pairs
from core.errors import UserError


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
    parser.add_argument(
        "--model", type=located, default="bundled", help="bundled, a folder or a hub id"
    )
    parser.add_argument("--output", type=Path, help="a new folder (default: in the workspace)")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted --output")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--preset",
        choices=("quick", "good", "thorough"),
        default="good",
        help="how much work the persona gets, as on the start page (default: good)",
    )
    parser.add_argument("--steps", type=int, help="optimizer steps (default: from the dataset)")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from core.pipeline.presets import PRESETS
    from core.pipeline.tune import tune

    slots = parse_pairs(args.slots, "--set")
    persona = str(Path(args.persona).resolve())
    spec = PRESETS[args.preset].spec(persona, slots, args.model, args.seed)
    if args.steps:
        spec = spec.changed(training={**spec.training, "steps": args.steps})
    if args.resume and not args.output:
        raise UserError(
            "--resume needs the --output of the interrupted tune", fix="name it: --output FOLDER"
        )
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{fsio.slug(slots.get('name', 'persona'))}"
    output = args.output or paths.tuned_dir() / stem
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
