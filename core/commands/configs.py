"""Command line of the configs: ``configs``, ``config show``, ``config diff``."""

from __future__ import annotations

import argparse
from typing import Any

from core.commands.located import located
from core.models import device


def register(sub: Any) -> None:
    """Add the commands to the root parser's sub-commands."""
    parser = sub.add_parser("configs", help="list the stock configs that XTuner ships")
    parser.add_argument("pattern", nargs="?", default="", help="only names that hold this text")
    parser.set_defaults(run=_configs)
    parser = sub.add_parser("config", help="show a run's XTuner config, or its edits")
    actions = parser.add_subparsers(dest="action", required=True)
    for name, about in (("show", "print the config"), ("diff", "print the edits as a patch")):
        action = actions.add_parser(name, help=about)
        add_spec_arguments(action)
        action.set_defaults(run=_config)


def add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    """``--dataset``, ``--model`` and any number of ``--set FIELD=VALUE``."""
    parser.add_argument("--dataset", required=True, help="dataset folder")
    parser.add_argument(
        "--model", type=located, default="bundled", help="'bundled', a folder, or a hub id"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="assignments",
        help="a training setting, e.g. steps=200",
    )


def spec_of(args: argparse.Namespace) -> Any:
    """(TrainSpec, choices) from the arguments of ``add_spec_arguments``."""
    from core.training.defaults import choose
    from core.training.spec_fields import parse_assignment

    overrides = dict(parse_assignment(text) for text in args.assignments)
    return choose(args.dataset, args.model, device.describe(), overrides)


def _configs(args: argparse.Namespace) -> int:
    from core.training import config

    for name in config.stock_configs():
        if args.pattern in name:
            print(name)
    return 0


def _config(args: argparse.Namespace) -> int:
    from core.training import config, configdiff

    spec, _ = spec_of(args)
    source = config.render(spec, config.resolve_inputs(spec))
    print(source if args.action == "show" else configdiff.unified_diff(spec, source), end="")
    return 0
