"""``python -m core model``: prepare a model, say what was found, trust its code."""

from __future__ import annotations

import argparse
from typing import Any

from core.commands.located import located
from core.models import device


def register(commands: Any) -> None:
    """Add the ``model`` command."""
    parser = commands.add_parser("model", help="check a model folder and the device")
    parser.add_argument(
        "model", type=located, nargs="?", default="bundled", help="bundled, a folder or a hub id"
    )
    parser.add_argument(
        "--trust-remote-code",
        nargs="?",
        const="",
        metavar="HASH",
        help="show the Python that the model brings; with its hash: trust exactly this code",
    )
    parser.add_argument(
        "--chat-template",
        metavar="NAME",
        help="make a folder of this model with a chat template: chatml, or the family's",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from core.models import catalog, families, prepared
    from core.training import base

    code = args.trust_remote_code is not None
    ref = catalog.resolve(
        args.model, lambda stage, done, total: print(f"{stage}: {done}/{total}"), code=code
    )
    if code and not _trusted(ref.path, args.model, args.trust_remote_code):
        return 1
    if args.chat_template:
        made = prepared.with_template(ref.path, args.chat_template)
        print(f"made {made}: use this folder as the model")
        ref = catalog.resolve(str(made))
    chat = base.require_trainable(ref.path)
    family = families.of(ref.family)
    print(f"{ref.name}: {ref.path}")
    print(f"  family {ref.family}, licence {ref.license}, speaks {', '.join(ref.locales)}")
    print(f"  XTuner's config: {family.stock_config}")
    print(f"  layers that get an adapter: {', '.join(family.targets) or 'every linear one'}")
    if family.quirk:
        print(f"  its chat template: {family.quirk}")
    print(f"  default system turn: {chat.default_system or 'none'}")
    print(f"  turn end: {chat.turn_end!r}")
    for warning in base.warnings(chat):
        print(f"  {warning}")
    print(f"device: {device.describe().line()}")
    return 0


def _trusted(folder: Any, model: str, digest: str) -> bool:
    """Show the code of a folder, and keep that it is trusted if its hash was given."""
    from core import fsio
    from core.models import trust

    code = trust.needed(folder)
    if code is None:
        print(f"{model} needs no code of its own: nothing to trust")
        return True
    if digest:
        trust.confirm(code, digest)
        print(f"trusted in this workspace: {digest}")
        return True
    for file in code.files:
        print(f"\n----- {file.relative_to(folder)} ({fsio.human_bytes(file.stat().st_size)})")
        print(fsio.read_text(file))
    print(f"\n{model} would run the code above ({', '.join(code.names.values())}) with all your")
    print("rights. If you trust it, say so with its hash, which changes with every byte:")
    print(f"python -m core model {model} --trust-remote-code {code.digest}")
    return False
