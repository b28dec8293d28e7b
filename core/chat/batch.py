"""Many prompts at once: where they come from, and which replies changed most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.chat.diff import similarity
from core.chat.transcripts import Reply
from core.errors import UserError, UserErrors

#: More prompts than this in one batch would run for hours on a laptop.
MAX_PROMPTS = 1_000
_MAX_BYTES = 5_000_000


@dataclass(frozen=True)
class BatchRow:
    """One prompt and what every column said.

    Attributes:
        kl: mean Kullback-Leibler divergence from the base per reply token, nats, by column id;
            only for columns whose models are on this machine.
    """

    prompt: str
    replies: dict[str, Reply]
    kl: dict[str, float]

    def change(self, base: str) -> float:
        """0 (all columns say what the base says) to 1 (nothing in common), the largest."""
        reference = self.replies[base].text
        others = [r.text for side, r in self.replies.items() if side != base]
        return max((1 - similarity(reference, text) for text in others), default=0.0)


def most_changed_first(rows: Sequence[BatchRow], base: str) -> list[BatchRow]:
    """Sorted by change of the words, then by divergence."""
    return sorted(
        rows, key=lambda r: (r.change(base), max(r.kl.values(), default=0.0)), reverse=True
    )


def read_prompts(path: Path) -> list[str]:
    """Prompts of a user's file.

    Raises:
        UserError: the file is missing, too large, not UTF-8, or has no prompt.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file", fix="give a text file or JSONL")
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path} is larger than 5 MB", fix="split it")
    return parse_prompts(path.read_bytes(), str(path))


def parse_prompts(data: bytes, where: str) -> list[str]:
    """One prompt a line; a line that begins with ``{`` is JSON with "prompt" or "messages".

    Raises:
        UserErrors: every line that cannot be read, at once.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8", why=str(error), fix="save it as UTF-8") from error
    prompts: list[str] = []
    problems: list[UserError] = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line:
            continue
        try:
            prompts.append(_json_prompt(line) if line.startswith("{") else line)
        except (ValueError, KeyError, TypeError) as error:
            problems.append(
                UserError(
                    "this line holds no prompt",
                    why=f"{type(error).__name__}: {error}"[:200],
                    fix='write the prompt itself, {"prompt": "..."} or {"messages": [...]}',
                    where=f"{where}:{number}",
                )
            )
    if problems:
        raise UserErrors(problems)
    if not prompts:
        raise UserError(f"{where} holds no prompt", fix="one prompt a line")
    if len(prompts) > MAX_PROMPTS:
        raise UserError(
            f"{where} holds {len(prompts):,} prompts", fix=f"at most {MAX_PROMPTS:,} in one batch"
        )
    return prompts


def _json_prompt(line: str) -> str:
    row: Any = json.loads(line)
    if isinstance(row.get("prompt"), str):
        return str(row["prompt"])
    for message in row["messages"]:
        if message["role"] == "user":
            return str(message["content"])
    raise ValueError("no user message")
