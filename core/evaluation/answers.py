"""Replies of a side to probes, kept by content: the same weights are never asked twice."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from core import fsio, paths
from core.conversation import Message, OnProgress, Probe
from core.errors import UserError
from core.evaluation.pool import Subject
from core.inference.requests import text_of
from core.inference.settings import GenerationSettings
from core.probes.fidelity import MANNER

#: Part of every cache key; raise it when decoding changes.
_VERSION = 3


@dataclass(frozen=True)
class Answer:
    """A reply: its text, its length in tokens, and whether it was cut at the limit."""

    text: str
    token_ids: list[int]
    cut: bool


@dataclass
class Clock:
    """Seconds by stage: ``spent`` this time, ``cold`` what it takes without caches."""

    spent: dict[str, float]
    cold: dict[str, float]

    def add(self, stage: str, spent: float, cold: float) -> None:
        self.spent[stage] = self.spent.get(stage, 0.0) + spent
        self.cold[stage] = self.cold.get(stage, 0.0) + cold


def answer(
    subject: Subject,
    probes: Sequence[Probe],
    draw: GenerationSettings,
    *,
    stage: str,
    clock: Clock,
    on_progress: OnProgress | None = None,
) -> list[Answer]:
    """Replies in probe order, from the cache if they are there.

    A probe of the suite ``manner`` holds the user's turns of a talk only: it is asked after the
    model's own replies to the turns before, which must be among ``probes``.
    """
    if any(p.suite == MANNER for p in probes):
        return _talk(subject, probes, draw, stage=stage, clock=clock, on_progress=on_progress)
    messages = [p.messages for p in probes]
    return _ask(subject, messages, draw, stage=stage, clock=clock, on_progress=on_progress)


def _talk(
    subject: Subject,
    probes: Sequence[Probe],
    draw: GenerationSettings,
    *,
    stage: str,
    clock: Clock,
    on_progress: OnProgress | None,
) -> list[Answer]:
    """All talks turn by turn: each turn of all of them is one batch."""
    said: dict[str, list[Message]] = {}
    found: dict[str, Answer] = {}
    for turn in sorted({len(p.messages) for p in probes}):
        now = [p for p in probes if len(p.messages) == turn]
        histories = [said.setdefault(p.id.rpartition("-")[0], []) for p in now]
        for probe, history in zip(now, histories, strict=True):
            history.append(probe.messages[-1])
        replies = _ask(subject, [*map(list, histories)], draw, stage=stage, clock=clock)
        for probe, history, reply in zip(now, histories, replies, strict=True):
            history.append({"role": "assistant", "content": reply.text})
            found[probe.id] = reply
        if on_progress:
            on_progress(stage, len(found), len(probes))
    return [found[p.id] for p in probes]


def _ask(
    subject: Subject,
    messages: Sequence[Sequence[Message]],
    draw: GenerationSettings,
    *,
    stage: str,
    clock: Clock,
    on_progress: OnProgress | None = None,
) -> list[Answer]:
    from core.inference import decoding

    resident = subject.voice.resident
    key = cache_key(
        "answers",
        subject.fingerprint,
        messages,
        draw.temperature,
        draw.seed,
        draw.max_new_tokens if draw.temperature > 0 else 0,
        str(resident.model.dtype),
        resident.model.device.type,
    )
    started = time.perf_counter()
    stored = load(key)
    if stored is None or stored["max_new_tokens"] < draw.max_new_tokens:
        replies = decoding.replies(
            subject.voice, messages, draw, on_progress=on_progress, stage=stage
        )
        found = [Answer(r.text, list(r.token_ids), r.finish_reason == "length") for r in replies]
        seconds = time.perf_counter() - started
        store(
            key,
            {
                "seconds": seconds,
                "max_new_tokens": draw.max_new_tokens,
                "answers": [asdict(a) for a in found],
            },
        )
        clock.add(stage, seconds, seconds)
        return found
    if on_progress:
        on_progress(stage, len(messages), len(messages))
    clock.add(stage, time.perf_counter() - started, stored["seconds"])
    return [_cut(Answer(**a), draw.max_new_tokens, resident.tokenizer) for a in stored["answers"]]


def _cut(answer: Answer, limit: int, tokenizer: Any) -> Answer:
    """A longer greedy reply, cut, is the reply under the lower limit."""
    if len(answer.token_ids) < limit or (len(answer.token_ids) == limit and answer.cut):
        return answer
    ids = answer.token_ids[:limit]
    return Answer(text_of(tokenizer, ids).strip(), ids, True)


def cache_key(*parts: Any) -> str:
    """sha256 over the parts as JSON, with the version of this module."""
    return hashlib.sha256(fsio.dump_json([_VERSION, *parts]).encode("utf-8")).hexdigest()


def _entry(key: str) -> Path:
    return paths.cache_dir() / "evaluation" / key[:2] / f"{key}.json"


def load(key: str) -> Any | None:
    """A stored value, or None. A damaged entry counts as absent; it is written again."""
    path = _entry(key)
    if not path.is_file():
        return None
    try:
        return fsio.read_json(path)
    except UserError:
        return None


def store(key: str, value: Any) -> None:
    """Keep a value (JSON) under its key."""
    fsio.write_json(_entry(key), value)
