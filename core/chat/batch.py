"""Many prompts at once: where they come from, and which replies changed most."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core import fsio
from core.chat.dialogue import Reply
from core.chat.diff import similarity
from core.data.fields import RowError, check_text
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
        others = [r.text for column, r in self.replies.items() if column != base]
        return max((1 - similarity(reference, text) for text in others), default=0.0)


def most_changed_first(rows: Sequence[BatchRow], base: str) -> list[BatchRow]:
    """Sorted by change of the words, then by divergence."""
    return sorted(
        rows, key=lambda r: (r.change(base), max(r.kl.values(), default=0.0)), reverse=True
    )


def read_prompts(path: Path, notes: list[str] | None = None) -> list[str]:
    """Prompts of a user's file; see ``parse_prompts``.

    Raises:
        UserError: the file is missing, too large, not UTF-8, or has no prompt.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file", fix="give a text file or JSONL")
    if path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path} is larger than 5 MB", fix="split it")
    return parse_prompts(fsio.read_bytes(path), str(path), notes)


def parse_prompts(data: bytes, where: str, notes: list[str] | None = None) -> list[str]:
    """One prompt a line; a line that begins with ``{`` is JSON with "prompt" or "messages".

    Args:
        notes: gets what was left out: of a whole talk only the last question is asked.

    Raises:
        UserErrors: every line that cannot be read, at once.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8", why=str(error), fix="save it as UTF-8") from error
    prompts: list[str] = []
    problems: list[UserError] = []
    talks = 0
    for number, line in fsio.numbered_lines(text):
        try:
            prompt, more = _json_prompt(line) if line.startswith("{") else (line, False)
            prompts.append(prompt)
            talks += more
        except (ValueError, RecursionError, RowError) as error:
            problems.append(
                UserError(
                    "this line holds no prompt",
                    why=(
                        f"{error.field}: {error.what}"
                        if isinstance(error, RowError)
                        else str(error)
                    ),
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
    if talks and notes is not None:
        notes.append(
            f"{talks:,} of {len(prompts):,} prompts are talks: only their last question is asked, "
            "without the turns before it (python -m core probe asks whole talks)"
        )
    return prompts


def _json_prompt(line: str) -> tuple[str, bool]:
    """The prompt, or the last user turn; and whether other turns stand before it."""
    row = json.loads(line)
    if "prompt" in row and not isinstance(row["prompt"], list):
        return check_text(row["prompt"], "prompt"), False
    turns = row.get("messages", row.get("prompt"))
    asked = [
        (at, f"messages[{at}].content", turn.get("content"))
        for at, turn in enumerate(turns if isinstance(turns, list) else [])
        if isinstance(turn, dict) and turn.get("role") == "user"
    ]
    if not asked:
        raise RowError("messages", "no user turn", "")
    at, where, text = asked[-1]
    return check_text(text, where), at > 0
