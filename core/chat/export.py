"""A conversation as Markdown, JSON or one HTML file that needs nothing from outside."""

from __future__ import annotations

import html
import re
import time
from dataclasses import asdict
from typing import Any

from core import fsio
from core.chat.dialogue import Reply, Transcript
from core.chat.transcripts import SCHEMA

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem }
.turn { margin: 2rem 0 } .prompt { background: #eef; border-radius: .5rem; padding: .75rem 1rem }
.replies { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)) }
.reply { border: 1px solid #ccd; border-radius: .5rem; padding: .75rem 1rem }
.reply { overflow-wrap: anywhere }
.text { white-space: pre-wrap } .note { color: #556; font-size: .85rem } .error { color: #a00 }
@media (prefers-color-scheme: dark) { body { background: #16181d; color: #e6e6e6 }
.prompt { background: #26304a } .reply { border-color: #444 } .note { color: #aab } }
"""


def to_json(transcript: Transcript) -> str:
    """Everything, exact prompts and token ids included."""
    record = {
        "schema": SCHEMA,
        "id": transcript.id,
        "created": transcript.created,
        "system": transcript.system,
        "columns": [s.to_dict() for s in transcript.columns],
        "turns": [
            {
                "prompt": turn.prompt,
                "settings": turn.settings.to_dict(),
                "vote": turn.vote,
                "replies": {column: asdict(reply) for column, reply in turn.replies.items()},
                "versions": {
                    column: [asdict(reply) for reply in replies]
                    for column, replies in turn.versions.items()
                },
            }
            for turn in transcript.turns
        ],
    }
    return fsio.dump_json(record, indent=2) + "\n"


def to_markdown(transcript: Transcript) -> str:
    """For a person or an issue: what others wrote is in fences, so nothing of it is rendered."""
    labels = {s.id: s.label for s in transcript.columns}
    lines = [f"# {_one_line(transcript.title)}", "", _when(transcript), ""]
    if transcript.system:
        lines += ["System prompt:", "", *_fenced(transcript.system), ""]
    for number, turn in enumerate(transcript.turns, 1):
        lines += [f"## {number}. Prompt", "", *_fenced(turn.prompt), ""]
        for column, reply in turn.replies.items():
            lines += [f"### {_one_line(labels.get(column, column))}", "", *_fenced(reply.text), ""]
            lines += [f"{_one_line(_note(reply))}", ""]
    return "\n".join(lines)


def to_html(transcript: Transcript) -> str:
    """One file without scripts, images or links; model text is shown as text."""
    labels = {s.id: s.label for s in transcript.columns}
    turns = []
    for turn in transcript.turns:
        replies = "".join(
            f'<section class="reply"><h3>{html.escape(labels.get(column, column))}</h3>'
            f'<div class="text">{html.escape(reply.text)}</div>'
            f'<p class="note">{html.escape(_note(reply))}</p></section>'
            for column, reply in turn.replies.items()
        )
        turns.append(
            f'<article class="turn"><div class="prompt text">{html.escape(turn.prompt)}</div>'
            f'<div class="replies">{replies}</div></article>'
        )
    title = html.escape(transcript.title)
    system = f'<p class="note">System prompt: {html.escape(transcript.system)}</p>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f'<p class="note">{_when(transcript)}</p>{system if transcript.system else ""}'
        f"{''.join(turns)}</body></html>\n"
    )


FORMATS: dict[str, tuple[str, Any]] = {
    "md": ("text/markdown", to_markdown),
    "json": ("application/json", to_json),
    "html": ("text/html", to_html),
}


def _fenced(text: str) -> list[str]:
    """A code block whose fence is longer than any run of backticks in the text."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [ticks, *text.strip("\n").split("\n"), ticks]


def _one_line(text: str) -> str:
    """A heading without links, images or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#!|~&@:])", r"\\\1", " ".join(text.split()))


def _when(transcript: Transcript) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(transcript.created))


def _note(reply: Reply) -> str:
    parts = [f"{reply.tokens} tokens", reply.finish_reason or "not finished"]
    if reply.tokens_per_s:
        parts.insert(1, f"{reply.tokens_per_s:.1f} tokens/s")
    if reply.error:
        parts.append(reply.error.get("what", ""))
    return ", ".join(parts)
