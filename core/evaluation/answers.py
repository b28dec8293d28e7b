"""Replies of a side to probes, kept by content: the same weights are not asked the same twice.

Not even by another stage: the search among checkpoints holds the weights that the merge will write
(``shipped``), so the scorecard finds their replies.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core import fsio, paths
from core.conversation import Message, OnProgress, Probe
from core.errors import UserError
from core.evaluation.pool import Subject
from core.inference.requests import Decoded, text_of
from core.inference.settings import GenerationSettings
from core.probes.fidelity import MANNER

#: Part of every cache key; raise it when decoding changes.
_VERSION = 4


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
    ahead: int = 0,
) -> list[Answer]:
    """Replies in probe order; what is kept is not asked again.

    Args:
        ahead: tokens that a later question will want of the same greedy replies; they are made so
            long at once, for going on later costs the prompt and what was said again.

    A probe of the suite ``manner`` holds the user's turns of a talk only: it is asked after the
    model's own replies to the turns before, which must be among ``probes``.
    """
    if any(p.suite == MANNER for p in probes):
        return _talk(subject, probes, draw, stage=stage, clock=clock, on_progress=on_progress)
    return _ask(
        subject,
        [p.messages for p in probes],
        draw,
        stage=stage,
        clock=clock,
        on_progress=on_progress,
        ahead=ahead,
    )


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
    ahead: int = 0,
) -> list[Answer]:
    from core.inference import decoding

    started = time.perf_counter()
    resident = subject.voice.resident
    prompts = [resident.template.encode(m) for m in messages]
    kept = _Kept.read(subject, prompts, draw, ahead)
    wanted, total = kept.lacking(), len(prompts)
    here = total - len(wanted)
    if wanted:
        replies = decoding.continuations(
            subject.voice,
            [prompts[i] for i in wanted],
            replace(draw, max_new_tokens=kept.limit),
            on_progress=on_progress and (lambda stage, n, _: on_progress(stage, here + n, total)),
            stage=stage,
        )
    elif on_progress:
        on_progress(stage, total, total)
    spent = time.perf_counter() - started
    if wanted:
        kept.keep(wanted, replies, spent)
    clock.add(stage, spent, kept.seconds())
    return [_cut(a, draw.max_new_tokens, resident.tokenizer) for a in kept.answers()]


@dataclass
class _Kept:
    """What one side's weights were asked before: a file for the weights, an entry for a prompt.

    A sampled reply depends on its place among the prompts too, so each list has a file of its own.
    """

    key: str
    names: list[str]
    limit: int
    entries: dict[str, dict[str, Any]]

    @classmethod
    def read(
        cls,
        subject: Subject,
        prompts: Sequence[Sequence[int]],
        draw: GenerationSettings,
        ahead: int,
    ) -> _Kept:
        model = subject.voice.resident.model
        names = [hashlib.sha256(repr(list(p)).encode()).hexdigest()[:32] for p in prompts]
        parts: list[Any] = [subject.fingerprint, str(model.dtype), model.device.type]
        limit = max(draw.max_new_tokens, ahead)
        if draw.temperature > 0:
            limit = draw.max_new_tokens
            parts += [draw.temperature, draw.seed, limit, names]
            names = [f"{place} {name}" for place, name in enumerate(names)]
        key = cache_key("replies", *parts)
        entries = load(key)
        return cls(key, names, limit, entries if isinstance(entries, dict) else {})

    def lacking(self) -> list[int]:
        """Places of the prompts that have no reply, or one that was cut before the limit."""
        return [i for i, name in enumerate(self.names) if not self._reaches(name)]

    def _reaches(self, name: str) -> bool:
        entry = self.entries.get(name)
        return entry is not None and (not entry["cut"] or len(entry["token_ids"]) >= self.limit)

    def keep(self, places: Sequence[int], replies: Sequence[Decoded], seconds: float) -> None:
        """Write the replies down; each gets its share of the seconds."""
        for i, reply in zip(places, replies, strict=True):
            self.entries[self.names[i]] = {
                "text": reply.text,
                "token_ids": list(reply.token_ids),
                "cut": reply.finish_reason == "length",
                "seconds": seconds / len(places),
            }
        store(self.key, self.entries)

    def answers(self) -> list[Answer]:
        """In the order of the prompts, as long as they are kept."""
        found = [self.entries[name] for name in self.names]
        return [Answer(e["text"], e["token_ids"], e["cut"]) for e in found]

    def seconds(self) -> float:
        """What these replies took when they were made."""
        return float(sum(self.entries[name]["seconds"] for name in set(self.names)))


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
