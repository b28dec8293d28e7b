"""``chat`` and ``compare``: the Compare page from the command line."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core import fsio
from core.chat import transcripts
from core.chat.batch import read_prompts
from core.chat.client import WorkerClient
from core.chat.columns import Column, ColumnKind, from_arguments
from core.chat.dialogue import Reply
from core.chat.endpoint import Endpoints
from core.chat.live import LiveTurn
from core.chat.session import ChatSession
from core.commands.located import located
from core.errors import UserError, UserErrors
from core.inference.settings import PRESETS, GenerationSettings, preset


def register(commands: Any) -> None:
    """Add both commands."""
    chat = commands.add_parser("chat", help="talk to one model", description=_chat.__doc__)
    chat.add_argument(
        "--model", type=located, default="bundled", help="bundled, a folder or a hub id"
    )
    chat.add_argument("--adapter", type=located, help="PEFT adapter folder, attached unmerged")
    _settings_options(chat)
    chat.set_defaults(run=_chat)

    compare = commands.add_parser(
        "compare", help="ask several models the same", description=_compare.__doc__
    )
    compare.add_argument(
        "--base", type=located, default="bundled", help="first column; bundled if not given"
    )
    compare.add_argument(
        "--adapter", type=located, action="append", default=[], help="base + this adapter"
    )
    compare.add_argument(
        "--merged", type=located, action="append", default=[], help="a merged model folder"
    )
    compare.add_argument("--persona-prompt", default="", help="base with this system prompt")
    compare.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="MODEL@URL",
        help="a model of an OpenAI-compatible server, e.g. luna@http://127.0.0.1:8000/v1",
    )
    compare.add_argument("--key-env", default="", help="variable that holds the endpoint's key")
    compare.add_argument("--prompt", action="append", default=[], help="may be given often")
    compare.add_argument("--prompts", type=Path, help="one prompt a line, or JSONL")
    compare.add_argument("--json", action="store_true", help="print JSON instead of text")
    _settings_options(compare)
    compare.set_defaults(run=_compare)


def _settings_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--system", default="", help="system prompt")
    parser.add_argument("--preset", choices=PRESETS[:-1], default="greedy")
    parser.add_argument("--temperature", type=float, help="0 is greedy")
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--top-k", type=int)
    parser.add_argument("--min-p", type=float)
    parser.add_argument("--repetition-penalty", type=float)
    parser.add_argument("--max-new-tokens", type=int)
    parser.add_argument("--seed", type=int)


def _settings(args: argparse.Namespace) -> GenerationSettings:
    names = [f.name for f in dataclasses.fields(GenerationSettings)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(preset(args.preset), **given).check()


def _chat(args: argparse.Namespace) -> int:
    """Talk to a model. An empty line or the end of input ends it; Ctrl-C stops a reply."""
    kind: ColumnKind = "adapter" if args.adapter else "base"
    column = Column("a", kind, args.model, args.model, args.adapter)
    settings = _settings(args)
    failed = False
    with _session([column], args.system) as session:
        while prompt := _ask():
            live = session.send(prompt, settings)
            _follow(session, live)
            error = live.turn.replies["a"].error
            failed = failed or error is not None
            print(f"\nerror: {UserError.from_dict(error)}" if error else "")
    return int(failed)


def _ask() -> str:
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    return sys.stdin.readline().strip()


def _follow(session: ChatSession, live: LiveTurn) -> None:
    """Print the reply while it streams."""
    reply = live.turn.replies["a"]
    seen, printed = -1, 0
    while session.live is live:
        try:
            seen = live.wait(seen, 0.5)
            print(reply.text[printed:], end="", flush=True)
            printed = len(reply.text)
        except KeyboardInterrupt:
            session.stop()


def _compare(args: argparse.Namespace) -> int:
    """Ask every model every prompt, each prompt in a conversation of its own."""
    notes: list[str] = []
    prompts = [*args.prompt, *(read_prompts(args.prompts, notes) if args.prompts else [])]
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    if not prompts:
        raise UserError("there is no prompt", fix="give --prompt or --prompts")
    columns = from_arguments(
        args.base, args.persona_prompt, args.adapter, args.merged, args.endpoint, args.key_env
    )
    settings = _settings(args)
    rows: list[dict[str, Any]] = []
    failed = False
    with _session(columns, args.system) as session:
        for prompt in prompts:
            session.clear()
            live = session.send(prompt, settings)
            seen = -1
            while session.live is live:
                seen = live.wait(seen, 0.2)
            replies = {s.label: live.turn.replies[s.id] for s in columns}
            failed = failed or any(r.error for r in replies.values())
            rows.append({"prompt": prompt, "replies": replies})
            if not args.json:
                _print_row(prompt, replies)
    if args.json:
        print(fsio.dump_json([_record(row) for row in rows], indent=2))
    return int(failed)


def _print_row(prompt: str, replies: dict[str, Reply]) -> None:
    print(f"# {prompt}\n")
    for label, reply in replies.items():
        rate = f", {reply.tokens_per_s:.1f} tokens/s" if reply.tokens_per_s else ""
        print(f"[{label}] ({reply.tokens} tokens{rate}, {reply.finish_reason})")
        print(UserError.from_dict(reply.error) if reply.error else reply.text.strip())
        print()


def _record(row: dict[str, Any]) -> dict[str, Any]:
    replies = {label: dataclasses.asdict(reply) for label, reply in row["replies"].items()}
    return {"prompt": row["prompt"], "replies": replies}


@contextmanager
def _session(columns: list[Column], system: str) -> Iterator[ChatSession]:
    """A conversation with loaded models; the worker ends with the block.

    Raises:
        UserErrors: a column cannot be loaded.
    """
    worker = WorkerClient()
    try:
        errors = worker.load(columns)
        if errors:
            found = [{**error, "where": f"column {column}"} for column, error in errors.items()]
            raise UserErrors([UserError.from_dict(record) for record in found])
        yield ChatSession(transcripts.create(columns, system), worker, Endpoints())
    finally:
        worker.close()
