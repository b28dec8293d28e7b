"""What a dataset holds, as numbers a page can draw. Shape::

    DatasetReport
      rows, kinds {kind: rows}, rounds {rounds: rows}
      locales        {locale: {kind: rows}}: each language needs its share of every kind
      intents        [IntentCell(intent, locale, family, clusters_trained, clusters_held_out,
                                 turns)]                       turns 0 = an empty cell
      lengths        Lengths(p50, p95, longest, limit, over_limit, tokens, histogram [(from, n)])
      loss_tokens    {kind: supervised tokens}
      general_to_identity  (by_rows, by_loss_tokens)           None without identity rows
      questions, replies   Diversity of the identity rows (core.data.diversity)
      all_replies    Diversity of every reply
      slot_coverage  {slot: share of identity replies that hold it}
      skeletons      {intent: entropy of skeleton use / log K, 0..1}
      largest_sentence_share   share of the loss tokens that the most repeated reply has
      findings       [Finding] of core.data.lint, errors first
      contamination  {rule: count} of the findings that concern held-out probes

Plain dataclasses, numbers and strings: ``asdict`` of it is JSON.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.conversation import Conversation, OnProgress, Probe, read_conversations
from core.data import diversity
from core.data.findings import Finding
from core.data.pack_lint import lint_pack, lint_slots
from core.data.row_lint import lint_rows
from core.models.template import ChatTemplate
from core.paths import DatasetPaths
from core.persona.persona import Persona, load_persona, trained_intents
from core.probes.suites import probes_in

_CONTAMINATION = ("held-out-cluster", "probe-wording", "near-probe")
#: Columns of the token-length histogram.
BINS = 24


@dataclass(frozen=True)
class IntentCell:
    """What the dataset has of one intent in one locale."""

    intent: str
    locale: str
    family: str
    clusters_trained: int
    clusters_held_out: int
    turns: int


@dataclass(frozen=True)
class Lengths:
    """Tokens of whole rows under the model's chat template; ``histogram`` = [(from, rows)]."""

    p50: int
    p95: int
    longest: int
    limit: int
    over_limit: int
    tokens: int
    histogram: list[tuple[int, int]]


@dataclass(frozen=True)
class DatasetReport:
    """See the module's docstring."""

    rows: int
    kinds: dict[str, int]
    locales: dict[str, dict[str, int]]
    rounds: dict[int, int]
    intents: list[IntentCell]
    lengths: Lengths
    loss_tokens: dict[str, int]
    general_to_identity: tuple[float, float] | None
    questions: diversity.Diversity
    replies: diversity.Diversity
    all_replies: diversity.Diversity
    slot_coverage: dict[str, float]
    skeletons: dict[str, float]
    largest_sentence_share: float
    findings: list[Finding]
    contamination: dict[str, int]

    @property
    def errors(self) -> list[Finding]:
        """Findings that forbid training on the dataset."""
        return [f for f in self.findings if f.level == "error"]


def report_dataset(
    dataset: DatasetPaths,
    model: Path,
    *,
    max_length: int = 512,
    on_progress: OnProgress | None = None,
) -> DatasetReport:
    """Report on a dataset folder under the tokenizer of ``model``."""
    from core.inference.load import load_tokenizer

    persona = load_persona(dataset.persona) if dataset.persona.is_file() else None
    return report_rows(
        list(read_conversations(dataset.train)),
        load_tokenizer(model),
        persona=persona,
        probes=probes_in(dataset.probes),
        max_length=max_length,
        on_progress=on_progress,
    )


def report_rows(
    rows: Sequence[Conversation],
    tokenizer: Any,
    *,
    persona: Persona | None = None,
    probes: Sequence[Probe] = (),
    max_length: int = 512,
    on_progress: OnProgress | None = None,
) -> DatasetReport:
    """Report on rows in memory. 5,000 rows take a few seconds."""
    tell = on_progress or (lambda stage, done, total: None)
    tell("count tokens", 0, 3)
    tokens = _Tokens.count(rows, tokenizer)
    tell("compare texts", 1, 3)
    identity = [r for r in rows if r.kind == "identity"]
    questions, replies = _texts(identity, "user"), _texts(identity, "assistant")
    kinds = Counter(r.kind for r in rows)
    tell("look for faults", 2, 3)
    special = [str(t) for t in getattr(tokenizer, "all_special_tokens", [])]
    findings = []
    if persona:
        findings = [*lint_pack(persona), *lint_slots(persona, tokenizer)]
    findings += lint_rows(rows, persona, probes=probes, control_tokens=special)
    said = diversity.measure(replies)
    findings += diversity.findings(said)
    tell("look for faults", 3, 3)
    return DatasetReport(
        rows=len(rows),
        kinds=dict(sorted(kinds.items())),
        locales=_by_language(rows),
        rounds=dict(sorted(Counter(r.rounds for r in rows).items())),
        intents=_cells(identity, persona, {p.cluster for p in probes}) if persona else [],
        lengths=tokens.lengths(max_length),
        loss_tokens=dict(sorted(tokens.by_kind.items())),
        general_to_identity=_ratio(rows, tokens),
        questions=diversity.measure(questions, questions=True),
        replies=said,
        all_replies=diversity.measure(_texts(rows, "assistant")),
        slot_coverage=_coverage(replies, persona) if persona else {},
        skeletons=_skeletons(identity, persona) if persona else {},
        largest_sentence_share=tokens.largest_share(),
        findings=findings,
        contamination={r: sum(f.count for f in findings if f.rule == r) for r in _CONTAMINATION},
    )


def _by_language(rows: Iterable[Conversation]) -> dict[str, dict[str, int]]:
    counts = Counter((r.locale, r.kind) for r in rows)
    found: dict[str, dict[str, int]] = {}
    for (locale, kind), count in sorted(counts.items()):
        found.setdefault(locale, {})[kind] = count
    return found


def _texts(rows: Iterable[Conversation], role: str) -> list[str]:
    return [m["content"] for r in rows for m in r.messages if m["role"] == role]


@dataclass
class _Tokens:
    """Token counts. The loss tokens of a reply are those of its text plus the turn end (none if the
    reply is cut), as in every template that writes control tokens around a turn; the length of a
    cut row counts the turn end that training leaves out."""

    per_row: list[int]
    by_kind: dict[str, int]
    by_reply: Counter[str]

    @classmethod
    def count(cls, rows: Sequence[Conversation], tokenizer: Any) -> _Tokens:
        template = ChatTemplate(tokenizer)
        texts = [template.render(template.with_system(r.messages)) for r in rows]
        by_kind: Counter[str] = Counter()
        by_reply: Counter[str] = Counter()
        supervised = [turn for r in rows for turn in _supervised(r)]
        counts = _lengths_of([text for _, text, _ in supervised], tokenizer)
        for (kind, text, ends), count in zip(supervised, counts, strict=True):
            by_kind[kind] += count + ends
            by_reply[text] += count + ends
        return cls(_lengths_of(texts, tokenizer), dict(by_kind), by_reply)

    def largest_share(self) -> float:
        total = sum(self.by_reply.values())
        return max(self.by_reply.values()) / total if total else 0.0

    def lengths(self, limit: int) -> Lengths:
        ranked = sorted(self.per_row) or [0]
        width = max(1, math.ceil((ranked[-1] + 1) / BINS))
        bins = Counter(n // width for n in self.per_row)
        return Lengths(
            p50=ranked[len(ranked) // 2],
            p95=ranked[min(len(ranked) - 1, math.floor(len(ranked) * 0.95))],
            longest=ranked[-1],
            limit=limit,
            over_limit=sum(n > limit for n in self.per_row),
            tokens=sum(self.per_row),
            histogram=[(i * width, bins.get(i, 0)) for i in range(max(bins, default=0) + 1)],
        )


def _supervised(row: Conversation) -> Iterator[tuple[str, str, int]]:
    """(kind, reply, trained turn ends) of each reply with loss."""
    replies = _texts([row], "assistant")
    for i, (text, on) in enumerate(zip(replies, row.loss, strict=True)):
        if on:
            yield row.kind, text, 0 if row.cut and i == len(replies) - 1 else 1


def _lengths_of(texts: Sequence[str], tokenizer: Any) -> list[int]:
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
    return [len(ids) for ids in encoded["input_ids"]]


def _ratio(rows: Sequence[Conversation], tokens: _Tokens) -> tuple[float, float] | None:
    identity = sum(r.kind == "identity" for r in rows)
    if not identity:
        return None
    loss = tokens.by_kind.get("identity", 0)
    general = sum(n for kind, n in tokens.by_kind.items() if kind != "identity")
    return (len(rows) - identity) / identity, general / loss if loss else 0.0


def _cells(
    identity: Sequence[Conversation], persona: Persona, held_out: Collection[str]
) -> list[IntentCell]:
    """``held_out``: the clusters that probes ask."""
    turns: Counter[tuple[str, str]] = Counter()
    for row in identity:
        for key in row.intent.split("+"):
            turns[key, row.locale] += 1
    cells = []
    for locale in persona.locales:
        for key in trained_intents(persona, locale):
            intent = persona.intents[key]
            trained = [c for c in intent.user[locale] if c.c not in held_out]
            cells.append(
                IntentCell(
                    key,
                    locale,
                    intent.family,
                    len(trained),
                    len(intent.user[locale]) - len(trained),
                    turns[key, locale],
                )
            )
    return cells


def _coverage(replies: Sequence[str], persona: Persona) -> dict[str, float]:
    folded = [r.casefold() for r in replies]
    found = {}
    for name in persona.pack.slots:
        aliases = [a.casefold() for a in persona.aliases(name)]
        if aliases and folded:
            found[name] = sum(any(a in r for a in aliases) for r in folded) / len(folded)
    return found


def _skeletons(identity: Sequence[Conversation], persona: Persona) -> dict[str, float]:
    """Evenness of the replies of each intent after slots are masked: 1 = all used alike."""
    values = [(a, name) for name in persona.pack.slots for a in persona.aliases(name)]
    values.sort(key=lambda item: -len(item[0]))
    masks = {a: f"{{{name}}}" for a, name in values}
    find = re.compile("|".join(re.escape(a) for a in masks)) if masks else None
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    for row in identity:
        if row.rounds == 1:
            text = row.messages[-1]["content"]
            masked = find.sub(lambda m: masks[m.group(0)], text) if find else text
            uses[row.intent][masked] += 1
    return {key: _evenness(counts) for key, counts in uses.items()}


def _evenness(counts: Counter[str]) -> float:
    total = sum(counts.values())
    if len(counts) < 2:
        return 0.0
    entropy = -sum(c / total * math.log(c / total) for c in counts.values())
    return round(entropy / math.log(len(counts)), 4)
