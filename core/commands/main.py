"""The command line. Each package registers its own commands; this module only gathers them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import TextIO, cast

from core.console import TextOnly, printable
from core.errors import UserError
from core.models import trust

#: Modules with a ``register(subparsers)``. They import nothing heavy until a command runs.
_COMMANDS = (
    "core.commands.tune",
    "core.commands.dataset",
    "core.commands.configs",
    "core.commands.runs",
    "core.commands.weights",
    "core.commands.chat",
    "core.commands.evaluation",
    "core.commands.model",
)


def build_parser() -> argparse.ArgumentParser:
    """All commands, ready to parse."""
    parser = argparse.ArgumentParser(
        prog="python -m core",
        description="Give a chat model an identity, and prove that it was learned.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        importlib.import_module(name).register(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 done, 1 the command's own "no" (a gate that failed, a job that ended badly),
        2 wrong input, with a message that says how to mend it, 130 interrupted.
    """
    args = build_parser().parse_args(argv)
    trust.permit()
    if sys.stdout.isatty():  # into a file or a pipe goes what was said, to the letter
        sys.stdout = cast(TextIO, TextOnly(sys.stdout))
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        return run(args)
    except (UserError, OSError) as error:  # OSError: what the disk refuses, in its own words
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
