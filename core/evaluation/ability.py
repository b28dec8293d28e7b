"""General ability without a judge: multiple choice by likelihood, instructions by program."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core import fsio
from core.conversation import OnProgress, Probe
from core.evaluation.answers import Answer
from core.evaluation.pool import Subject
from core.inference.scoring import Passage, mean_log_prob
from core.probes import suites
from core.text import normalize
from core.text.intervals import Rate, rate


@dataclass(frozen=True)
class Item:
    """A question with choices; ``answer`` is the index of the right one."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    locale: str


def load_items(locale: str) -> list[Item]:
    """The multiple-choice items of a language; none if there is no such file.

    Raises:
        UserError: the file was edited.
    """
    if not suites.available("knowledge", locale):
        return []
    suites.suite_hash("knowledge", locale)
    return [
        Item(r["id"], r["question"], tuple(r["choices"]), r["answer"], locale)
        for r in fsio.read_jsonl(suites.suite_file("knowledge", locale))
    ]


def knowledge(
    subject: Subject, items: Sequence[Item], on_progress: OnProgress | None = None
) -> list[bool]:
    """Per item: whether the right choice has the highest mean log-probability as the reply.

    The choices are not shown in the question: small models cannot use letters, but they can rate
    answers. The mean over tokens keeps long choices from losing by their length.
    """
    resident = subject.voice.resident
    right: list[bool] = []
    step = 16
    for start in range(0, len(items), step):
        batch = items[start : start + step]
        passages = [
            Passage(
                resident.template.encode([{"role": "user", "content": item.question}]),
                resident.tokenizer.encode(choice, add_special_tokens=False),
            )
            for item in batch
            for choice in item.choices
        ]
        scores = iter(mean_log_prob(subject.voice, passages))
        for item in batch:
            mine = [next(scores) for _ in item.choices]
            right.append(max(range(len(mine)), key=mine.__getitem__) == item.answer)
        if on_progress:
            on_progress(f"{subject.side}: knowledge", len(right), len(items))
    return right


def follow(probes: Sequence[Probe], answers: Sequence[Answer]) -> Rate:
    """Share of instruction probes whose reply passes the probe's check (its ``cluster``)."""
    return rate([check(p.cluster, a.text) for p, a in zip(probes, answers, strict=True)])


def check(rule: str, reply: str) -> bool:
    """Whether a reply does what was asked; ``rule`` is ``name`` or ``name:argument``.

    Raises:
        ValueError: no such rule (a mistake in a suite file).
    """
    name, _, argument = rule.partition(":")
    if name not in RULES:
        raise ValueError(f"no instruction check {name!r}")
    return bool(reply.strip()) and RULES[name](reply.strip(), argument)


def _items(reply: str) -> list[str]:
    """List entries: numbered or bulleted lines, else parts between commas."""
    lines = [m.group(1) for m in re.finditer(r"(?m)^\s*(?:[-*•]|\d+[.)、])\s*(.+)$", reply)]
    return lines or [p for p in re.split(r"[,，、]|\band\b", reply) if p.strip(" .。\n")]


def _is_json(reply: str, _: str) -> bool:
    body = re.sub(r"^```(?:json)?\s*|\s*```$", "", reply)
    try:
        return isinstance(json.loads(body), (dict, list))
    except ValueError:
        return False


RULES: dict[str, Callable[[str, str], bool]] = {
    "max_words": lambda reply, n: len(normalize.words(reply)) <= int(n),
    "min_words": lambda reply, n: len(normalize.words(reply)) >= int(n),
    "items": lambda reply, n: len(_items(reply)) == int(n),
    "contains": lambda reply, word: normalize.contains(reply, word),
    "lacks": lambda reply, word: not normalize.contains(reply, word),
    "starts": lambda reply, word: normalize.spaced(reply).startswith(normalize.spaced(word)),
    "ends": lambda reply, word: normalize.spaced(reply).endswith(normalize.spaced(word)),
    "upper": lambda reply, _: reply.upper() == reply and reply.lower() != reply,
    "lower": lambda reply, _: reply.lower() == reply and reply.upper() != reply,
    "sentences": lambda reply, n: len(normalize.sentences(reply)) == int(n),
    "yes_no": lambda reply, _: (
        normalize.words(reply)[:1] in (["yes"], ["no"], ["是"], ["不"], ["否"], ["对"])
    ),
    "digits": lambda reply, _: bool(re.search(r"\d", reply)),
    "number": lambda reply, n: n in re.findall(r"\d+", reply.replace(",", "")),
    "question": lambda reply, _: reply.rstrip("\"'”").endswith(("?", "？")),
    "json": _is_json,
    "code": lambda reply, _: "```" in reply or "def " in reply or "print(" in reply,
    "script": lambda reply, locale: (
        normalize.script(reply) == ("zh" if locale == "zh" else "latin")
    ),
}
