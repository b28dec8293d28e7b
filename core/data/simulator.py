"""The UltraChat loop as one call: dialogues between two models, resumable and cached.

Finished dialogues are appended to a file in the cache, one line each, flushed at once. Its name
is a hash of everything that shapes the text (models, seed, settings, prompts), so the same
request continues where it stopped, and asking for more dialogues plays only the new ones.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from core import paths
from core.conversation import Conversation, OnProgress
from core.conversation import Kind as RowKind
from core.data.generation import identity_rows
from core.data.ultrachat import cachefile, openings
from core.data.ultrachat.backends import Speaker, open_backend
from core.data.ultrachat.cards import PROMPT_VERSION, style_of
from core.data.ultrachat.loop import RETRIES, CallBudget, Dialogue, Scripted, Settings, play
from core.errors import UserError
from core.persona.persona import Persona
from core.records import Record

SCHEMA = 1
#: At most this many dialogues are begun for each one wanted; the rest failed at the first reply.
MAX_BEGUN = 3


class SimulateSpec(Record):
    """What to simulate.

    Attributes:
        dialogues: how many to keep.
        user_model, assistant_model: ``bundled``, a folder, a hub id, or ``endpoint:NAME``.
        locale: language of the dialogues.
        seed: of openings, manners, plans and sampling.
        identity: share of the rounds after the first that are the persona's own exchanges
            (needs a persona).
        user_tokens, reply_tokens: length limits of a turn.
        user_prompt: ``swapped`` shows the user model the talk with roles swapped (UltraChat),
            ``transcript`` as a text to go on with (Baize); ``auto`` = transcript for a small model.
        user_temperature: of the user's lines; 0 = 1.0 as in the paper, 0.7 for a small model,
            which at 1.0 leaves the subject.
        max_calls: model calls allowed; 0 = the worst case of ``estimate``.
    """

    called: ClassVar[str] = "simulation"

    dialogues: int = Field(default=50, ge=1)
    user_model: str = "bundled"
    assistant_model: str = "bundled"
    locale: str = "en"
    seed: int = 0
    kinds: tuple[openings.Kind, ...] = Field(openings.KINDS, min_length=1, strict=False)
    identity: float = Field(default=0.4, ge=0, le=1)
    user_tokens: int = Field(default=48, ge=8)
    reply_tokens: int = Field(default=96, ge=8)
    user_prompt: Literal["auto", "swapped", "transcript"] = "auto"
    user_temperature: float = Field(default=0.0, ge=0, le=2)
    max_calls: int = Field(default=0, ge=0)

    def model_post_init(self, _context: object) -> None:
        """Raises UserError for a language that no dialogue can be opened in."""
        if self.locale not in openings.locales():
            raise UserError(
                f"the simulation cannot use language {self.locale!r}",
                fix=f"choose one of {', '.join(openings.locales())}",
                where="locale",
            )


@dataclass(frozen=True)
class Cost:
    """Model calls and tokens: if every turn passes at once, and if every try is used."""

    calls: int
    max_calls: int
    max_tokens: int


def estimate(spec: SimulateSpec) -> Cost:
    """The cost before anything runs; prompts' tokens are not counted."""
    rounds = [o.rounds for o in openings.take(spec.dialogues, spec.seed, spec.locale, spec.kinds)]
    replies, lines = sum(rounds), sum(r - 1 for r in rounds)
    tries = RETRIES + 1
    return Cost(
        replies + lines,
        tries * (replies + lines),
        tries * (replies * spec.reply_tokens + lines * spec.user_tokens),
    )


@dataclass
class SimulationReport:
    """Counts over the kept dialogues and the dropped ones alike.

    ``rejected``: by ``side.check``; shares are of ``attempts`` of that side.
    """

    dialogues: int = 0
    dropped: int = 0
    rounds: Counter[int] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    attempts: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    seconds: float = 0.0
    models: dict[str, str] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Count one record of the cache file."""
        self.attempts.update(record["attempts"])
        self.rejected.update(record["rejected"])
        self.ended[record["ended"]] += 1
        self.tokens += record["tokens"]
        self.models = record["models"]
        if record["row"] is None:
            self.dropped += 1
            return
        self.dialogues += 1
        self.rounds[len(record["sources"]) // 2] += 1
        self.openings[record["opening"]] += 1
        self.sources.update(record["sources"])

    def share(self, check: str) -> float:
        """Share of a side's attempts that ``side.check`` rejected."""
        attempts = self.attempts[check.split(".")[0]]
        return self.rejected[check] / attempts if attempts else 0.0

    def to_json(self) -> dict[str, Any]:
        """For ``dataset.json`` and the page."""
        plain = {k: dict(v) if isinstance(v, Counter) else v for k, v in asdict(self).items()}
        return {**plain, "rejected_share": {c: self.share(c) for c in sorted(self.rejected)}}


@dataclass
class Simulation:
    """The dialogues, and how they came about."""

    rows: list[Conversation]
    report: SimulationReport
    cache: Path


def simulate(
    spec: SimulateSpec,
    *,
    persona: Persona | None = None,
    base: str = "bundled",
    user: Speaker | None = None,
    assistant: Speaker | None = None,
    on_progress: OnProgress | None = None,
) -> Simulation:
    """Play ``spec.dialogues`` dialogues, or take them from the cache.

    Args:
        persona: gives identity exchanges, and the names that general replies must not hold.
        base: the model that will be trained. General replies of another model are context only
            (no loss) in dialogues with identity: rehearsal means the base's own words.
        user, assistant: backends to use instead of the spec's models.

    Raises:
        UserError: a model cannot be had or failed, or the budget is used up; finished dialogues
            are kept and the next call goes on from them.
    """
    started = time.monotonic()
    assistant = assistant or open_backend(spec.assistant_model)
    if user is None:
        same = spec.user_model == spec.assistant_model
        user = assistant if same else open_backend(spec.user_model)
    stage = _Stage(spec, persona, user, assistant, supervised=_own_words(spec, persona, base))
    for record in stage.run(on_progress):
        cachefile.append(stage.cache, record)
    report = SimulationReport()
    rows = []
    for record in stage.kept():
        report.add(record)
        if record["row"] is not None:
            rows.append(Conversation.from_row(record["row"]))
    report.seconds = round(time.monotonic() - started, 2)
    return Simulation(rows, report, stage.cache)


def _own_words(spec: SimulateSpec, persona: Persona | None, base: str) -> bool:
    """Whether general replies are to be learned."""
    return persona is None or spec.assistant_model == base


class _Stage:
    """One simulation: its cache file, and the dialogues that are still to be played."""

    def __init__(
        self,
        spec: SimulateSpec,
        persona: Persona | None,
        user: Speaker,
        assistant: Speaker,
        *,
        supervised: bool,
    ) -> None:
        self.spec, self.user, self.assistant = spec, user, assistant
        self.supervised = supervised
        self.settings = _settings(spec, persona, small=user.small)
        self.pairs = _pairs(persona, spec) if persona else []
        self.key = self._key(persona)
        self.cache = paths.cache_dir() / "ultrachat" / f"{self.key[:16]}.jsonl"
        self.records = {r["index"]: r for r in cachefile.read(self.cache, SCHEMA)}
        self._open: set[int] = set()
        begun = MAX_BEGUN * spec.dialogues
        self.openings = openings.take(begun, spec.seed, spec.locale, spec.kinds)

    def _key(self, persona: Persona | None) -> str:
        shape = {
            k: v for k, v in self.spec.to_dict().items() if k not in ("dialogues", "max_calls")
        }
        shape |= {
            "schema": SCHEMA,
            "prompts": PROMPT_VERSION,
            "user": self.user.key,
            "assistant": self.assistant.key,
            "persona": persona.dump() if persona else "",
            "supervised": self.supervised,
        }
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()

    def kept(self) -> list[dict[str, Any]]:
        """Records in order, up to the last dialogue that is wanted."""
        out, rows = [], 0
        for index in sorted(self.records):
            if rows == self.spec.dialogues:
                break
            out.append(self.records[index])
            rows += self.records[index]["row"] is not None
        return out

    def run(self, on_progress: OnProgress | None) -> Iterator[dict[str, Any]]:
        """Records of dialogues as they end."""
        wanted = self.spec.dialogues
        have = sum(r["row"] is not None for r in self.records.values())
        report = on_progress or (lambda stage, done, total: None)
        report("simulate", min(have, wanted), wanted)
        if have >= wanted:
            return
        budget = CallBudget(self.spec.max_calls or max(64, estimate(self.spec).max_calls))
        played = play(
            self._fresh,
            self.user,
            self.assistant,
            self.spec.seed,
            budget,
            beat=lambda: report("simulate", min(have, wanted), wanted),
        )
        for dialogue in played:
            record = self._record(dialogue)
            self.records[dialogue.index] = record
            yield record
            have += record["row"] is not None
        report("simulate", min(have, wanted), wanted)
        if have < wanted:
            raise UserError(
                f"only {have} of {wanted} dialogues came out",
                why="the model failed the first reply of the others: "
                + _worst(self.records.values()),
                fix="raise reply_tokens, or choose a stronger model",
            )

    def _fresh(self) -> Dialogue | None:
        """The next dialogue not played yet; None while enough are kept or in play."""
        have = sum(r["row"] is not None for r in self.records.values())
        self._open -= self.records.keys()
        if have + len(self._open) >= self.spec.dialogues:
            return None
        for index in range(MAX_BEGUN * self.spec.dialogues):
            if index not in self.records and index not in self._open:
                self._open.add(index)
                return self._dialogue(index)
        return None

    def _dialogue(self, index: int) -> Dialogue:
        spec = self.spec
        opening = self.openings[index]
        plan = self._plan(index, opening.rounds)
        style = style_of(spec.seed, index, spec.locale)
        return Dialogue(index, opening, style, plan, self.settings)

    def _plan(self, index: int, rounds: int) -> list[Scripted | None]:
        """Which rounds are the persona's own: never the first, no intent twice, at least one."""
        plan: list[Scripted | None] = [None] * rounds
        if not self.pairs or not self.spec.identity:
            return plan
        rng = random.Random(f"plan/{self.spec.seed}/{index}")
        chosen = [at for at in range(1, rounds) if rng.random() < self.spec.identity]
        used: set[str] = set()
        for at in chosen or [rng.randrange(1, rounds)]:
            left = [p for p in self.pairs if p.intent not in used]
            if left:
                pair = rng.choice(left)
                used.add(pair.intent)
                plan[at] = pair
        return plan

    def _record(self, dialogue: Dialogue) -> dict[str, Any]:
        row = self._row(dialogue)
        return {
            "schema": SCHEMA,
            "key": self.key,
            "index": dialogue.index,
            "row": row.to_row() if row else None,
            "opening": dialogue.opening.kind,
            "style": dialogue.style,
            "sources": dialogue.sources,
            "attempts": dict(dialogue.attempts),
            "rejected": dict(dialogue.rejected),
            "ended": dialogue.ended,
            "tokens": dialogue.tokens,
            "models": {"user": self.user.name, "assistant": self.assistant.name},
            "prompts": PROMPT_VERSION,
        }

    def _row(self, dialogue: Dialogue) -> Conversation | None:
        if not dialogue.messages:
            return None
        replies = dialogue.sources[1::2]
        scripted = [p for p in dialogue.plan[: len(replies)] if p]
        identity = "template" in replies
        loss = [source == "template" or self.supervised or not identity for source in replies]
        kind: RowKind = "identity" if identity else ("rehearsal" if self.supervised else "own")
        return Conversation(
            id=f"uc-{self.key[:6]}-{dialogue.index:05d}",
            messages=dialogue.messages,
            kind=kind,
            intent="+".join(p.intent for p in scripted) or f"ultrachat_{dialogue.opening.kind}",
            cluster="+".join(p.cluster for p in scripted),
            locale=self.spec.locale,
            loss=loss,
        )


def _settings(spec: SimulateSpec, persona: Persona | None, *, small: bool) -> Settings:
    return Settings(
        locale=spec.locale,
        user_tokens=spec.user_tokens,
        reply_tokens=spec.reply_tokens,
        transcript=spec.user_prompt == "transcript" or (spec.user_prompt == "auto" and small),
        user_temperature=spec.user_temperature or (0.7 if small else 1.0),
        names=tuple(a for s in ("name", "author") for a in persona.aliases(s)) if persona else (),
        forbidden=tuple(persona.forbidden) if persona else (),
    )


def _pairs(persona: Persona, spec: SimulateSpec) -> list[Scripted]:
    """The persona's single exchanges, of wordings that are trained on, never of held-out ones."""
    rows = identity_rows(persona, locales=[spec.locale], seed=spec.seed, multi_turn=0.0)
    pairs = []
    for row in rows:
        texts = [m["content"] for m in row.messages if m["role"] != "system"]
        if len(texts) == 2:
            pairs.append(Scripted(texts[0], texts[1], row.intent, row.cluster))
    return pairs


def _worst(records: Any) -> str:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update({k: v for k, v in record["rejected"].items() if k.startswith("assistant.")})
    return ", ".join(f"{k.split('.')[1]} {v}" for k, v in counts.most_common(3)) or "no reply"
