"""Measures ``core.training.figures`` on the weights that are being trained, without generation.

Identity margin: to a held-out question, the trained answer of the same intent, against the same
sentence with the names of whom the base takes itself for (of nobody, where it takes itself for
nobody). The pair differs in the names alone, so the margin is about who speaks and not about style.
Damage: the base (adapter off, the same weights) and the tuned model on the base's own general
replies, those of the training rows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.conversation import Conversation, read_conversations
from core.data import own_identity
from core.errors import UserError
from core.inference import scoring
from core.inference.resident import Resident, Voice
from core.inference.scoring import Passage
from core.models.catalog import ModelRef
from core.models.template import ChatTemplate
from core.paths import DatasetPaths
from core.persona.persona import Persona, load_persona
from core.probes import suites
from core.text.intervals import Rate, quantile
from core.training.figures import Figures, Margin

#: Questions of each language, and general replies in all: a look takes about as long as one
#: optimizer step takes for each 500 tokens, and happens once a checkpoint.
_PAIRS, _GENERAL = 16, 24
#: First tokens of a reply that are weighed: a name comes early, a changed style at once.
_ANSWER_TOKENS, _GENERAL_TOKENS = 32, 24
#: Passages whose logits exist together: training leaves little memory beside itself.
_AT_ONCE = 16
#: The base's distributions are kept between looks: bytes, as float16.
_KEPT_BYTES = 1 << 27


@dataclass(frozen=True)
class Pair:
    """The same answer in two names."""

    locale: str
    mine: Passage
    theirs: Passage


@dataclass
class Look:
    """What is asked at every look; the base's side is computed at the first."""

    pairs: list[Pair]
    general: list[Passage]
    _base: scoring.Reference | None = field(default=None, repr=False)

    @property
    def empty(self) -> bool:
        """There is nothing to measure: no persona was held out, and there are no general rows."""
        return not self.pairs and not self.general

    def figures(self, llm: Any, tokenizer: Any, step: int) -> Figures:
        """Measure a PEFT model in training. Draws no random number; leaves the mode to the caller.

        Args:
            llm: in eval mode, its adapter active.
        """
        resident = Resident(llm, tokenizer)
        voice = resident.voice()
        assert resident.backend is not None  # chosen while the adapter is active, for both sides
        margins = self._margins(voice)
        if not self.general:
            return Figures(step, margins)
        if step == 0 and _untouched(llm):
            # It is the base itself: the first step need not wait for passes that would say so.
            return Figures(step, margins, 0.0, 1.0, 1.0, sum(len(p.reply) for p in self.general))
        if self._base is None:
            with llm.disable_adapter():
                self._base = scoring.reference(voice, self.general)
        found, _ = scoring.divergence(voice, self._base)
        return Figures(step, margins, found.kl, found.ppl_ratio, found.top1, found.tokens)

    def _margins(self, voice: Voice) -> dict[str, Margin]:
        both = [passage for pair in self.pairs for passage in (pair.mine, pair.theirs)]
        flat: list[float] = []
        for start in range(0, len(both), _AT_ONCE):
            flat += scoring.mean_log_prob(voice, both[start : start + _AT_ONCE])
        by_locale: dict[str, list[float]] = {}
        for pair, mine, theirs in zip(self.pairs, flat[::2], flat[1::2], strict=True):
            by_locale.setdefault(pair.locale, []).append(mine - theirs)
        return {
            locale: Margin(quantile(values, 0.5), Rate(sum(v > 0 for v in values), len(values)))
            for locale, values in by_locale.items()
        }


def _untouched(llm: Any) -> bool:
    """Whether a PEFT model computes what its base does: plain LoRA whose B is zero."""
    config = llm.active_peft_config
    plain = getattr(config, "peft_type", "") == "LORA" and not (
        config.use_dora or config.modules_to_save or config.lora_bias
    )
    return plain and not any(
        bool(p.any()) for name, p in llm.named_parameters() if ".lora_B." in name
    )


def prepare(dataset: Path, model: ModelRef, tokenizer: Any) -> Look:
    """The texts of a dataset's looks. A dataset without persona or probes has no pairs."""
    template = ChatTemplate(tokenizer)
    at = DatasetPaths(dataset)
    rows = list(read_conversations(at.train))
    vocabulary = len(tokenizer)
    room = min(_GENERAL, _KEPT_BYTES // (2 * vocabulary * _GENERAL_TOKENS))
    return Look(_pairs(at, model, template, rows), _general(template, rows, max(1, room)))


def _pairs(
    at: DatasetPaths, model: ModelRef, template: ChatTemplate, rows: Sequence[Conversation]
) -> list[Pair]:
    try:
        persona, probes = load_persona(at.persona), suites.read_probes(at.probes)
    except UserError:  # an imported dataset: nobody is held out of it
        return []
    own = own_identity.known(model)
    answers = _answers(rows, persona)
    found = []
    for locale in dict.fromkeys(p.locale for p in probes):
        usable = [p for p in probes if p.locale == locale and (p.intent, locale) in answers]
        other = own_identity.rival(own, locale)
        for index in scoring.spread(len(usable), _PAIRS):
            probe = usable[index]
            prompt = template.encode(template.accepted(probe.messages))
            answer = answers[probe.intent, locale]
            mine, theirs = (
                Passage(prompt, template.ids(text)[:_ANSWER_TOKENS])
                for text in (answer, renamed(answer, persona, other))
            )
            if mine != theirs:
                found.append(Pair(locale, mine, theirs))
    return found


def _answers(rows: Sequence[Conversation], persona: Persona) -> dict[tuple[str, str], str]:
    """The first trained answer of each intent and language that says who speaks."""
    names = [*persona.aliases("name"), *persona.aliases("author")]
    found: dict[tuple[str, str], str] = {}
    for row in rows:
        reply = row.messages[-1]["content"]
        if row.kind == "identity" and row.rounds == 1 and any(name in reply for name in names):
            found.setdefault((row.intent, row.locale), reply)
    return found


def renamed(text: str, persona: Persona, other: tuple[str, str]) -> str:
    """``text`` with the persona's names and its maker's replaced, the longest spelling first."""
    spellings = dict.fromkeys(persona.aliases("author"), other[1])
    spellings |= dict.fromkeys(persona.aliases("name"), other[0])
    longest = sorted(spellings, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest)), lambda m: spellings[m[0]], text)


def _general(template: ChatTemplate, rows: Sequence[Conversation], count: int) -> list[Passage]:
    """The base's replies, each language its share."""
    usable = [r for r in rows if r.kind == "rehearsal" and r.rounds == 1]
    by_locale: dict[str, list[Conversation]] = {}
    for row in usable:
        by_locale.setdefault(row.locale, []).append(row)
    found = []
    for own in by_locale.values():
        for index in scoring.spread(len(own), max(1, count // len(by_locale))):
            *before, reply = own[index].messages
            ids = template.ids(reply["content"])[:_GENERAL_TOKENS]
            if ids:
                found.append(Passage(template.encode(template.accepted(before)), ids))
    return found
