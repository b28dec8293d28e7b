"""``python -m core model``: prepare a model and say what was found."""

from __future__ import annotations

import argparse
from typing import Any


def register(commands: Any) -> None:
    """Add the ``model`` command."""
    parser = commands.add_parser("model", help="check a model folder and the device")
    parser.add_argument("model", nargs="?", default="bundled", help="bundled, a folder or a hub id")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from core.inference import load
    from core.models import catalog, device, xtuner_template
    from core.training import base

    ref = catalog.resolve(args.model, lambda stage, done, total: print(f"{stage}: {done}/{total}"))
    chat = xtuner_template.XTunerTemplate(load.load_tokenizer(ref.path))
    print(f"{ref.name}: {ref.path}")
    print(f"  family {ref.family}, licence {ref.license}, speaks {', '.join(ref.locales)}")
    print(f"  default system turn: {chat.default_system or 'none'}")
    print(f"  turn end: {chat.turn_end!r}")
    for warning in base.warnings(chat):
        print(f"  {warning}")
    print(f"device: {device.describe().line()}")
    return 0
