"""What a dataset's persona is asked: held-out and seen wordings, frozen suites with its names.

Also the guard against cheating: a held-out wording that occurs in training is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.conversation import Conversation, Probe, read_conversations
from core.errors import UserError, UserErrors
from core.evaluation import ability
from core.evaluation.plan import Plan
from core.paths import DatasetPaths
from core.persona.persona import Persona, load_persona
from core.persona.system import system_turn
from core.probes import fidelity, scorer, suites
from core.text import normalize

#: Replies kept to look for echoes; beyond that a comparison costs more than it tells.
_ECHO_REPLIES = 3000


@dataclass
class Questions:
    """Everything that is asked, and what is needed to judge the answers."""

    persona_id: str
    names: suites.Names
    suites: dict[str, list[Probe]]
    hashes: dict[str, str]
    train_replies: list[str]
    replies_by_intent: dict[tuple[str, str], str]
    knowledge: list[ability.Item] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def described(self) -> dict[str, dict[str, Any]]:
        """Per suite: number of probes, and the hash of the frozen file it came from."""
        return {
            name: {"n": len(probes), "sha256": self.hashes.get(name, "")}
            for name, probes in self.suites.items()
        }

    def reply_for(self, probe: Probe) -> str:
        """A trained reply to the probe's intent, or ''."""
        return self.replies_by_intent.get((probe.intent, probe.locale), "")

    def common_words(self, base_replies: Sequence[str]) -> frozenset[str]:
        """Folded names of the persona that occur in lower case, as words, in unrelated text."""
        prompts = [
            m["content"]
            for s in ("general", "near_miss")
            for p in self.suites.get(s, [])
            for m in p.messages
        ]
        text = "\n".join([*prompts, *base_replies])
        found = scorer.everyday(self.names.aliases, text)
        if found:
            self.notes.append(
                f"{', '.join(found)}: also an everyday word, so it counts only with its capital, "
                "inside a sentence or after words such as 'my name is'"
            )
        return frozenset(normalize.spaced(a) for a in found)


def gather(
    dataset: DatasetPaths, plan: Plan, model_locales: Sequence[str], introduction: str = ""
) -> Questions:
    """Collect the questions of a plan.

    Args:
        introduction: the base's default system turn if it names somebody; the suite
            ``introduced`` then asks under that turn and under the persona's own.

    Raises:
        UserError: the dataset is not whole, its persona has no recognisable name, no held-out
            wording is in a language of the model.
        UserErrors: held-out wordings that occur in training, all of them.
    """
    if not dataset.manifest.is_file() or not dataset.persona.is_file():
        raise UserError(
            f"{dataset.root} is not a complete dataset with a persona",
            fix="build it on the Dataset page, or give the folder of a dataset",
        )
    persona = load_persona(dataset.persona)
    names = suites.names_of(persona)
    probes = suites.read_probes(dataset.probes)
    locales = [loc for loc in dict.fromkeys(p.locale for p in probes) if loc in model_locales]
    if not locales:
        raise UserError(
            "no held-out wording is in a language that the model speaks",
            why=f"the model speaks {', '.join(model_locales)}",
            fix="build the dataset with one of the model's locales",
        )
    train = _Training.read(dataset.train)
    held_out = [p for p in probes if p.locale in locales]
    refuse_contaminated(held_out, train)
    asked = Questions(persona.id, names, {}, {}, train.replies[:_ECHO_REPLIES], train.by_intent)
    for name, suite in plan.suites.items():
        if name == "held_out":
            found = held_out
        elif name == "train":
            found = list(_seen(train, persona, names, locales))
        elif name == "introduced":
            found = _introduced(introduction, persona, held_out, locales) if introduction else []
        else:
            found = _frozen(name, locales, persona, names, held_out, asked, train)
        found = _limited(found, suite.limit)
        if found:
            asked.suites[name] = found
        elif name in ("held_out", "general"):
            raise UserError(
                f"nothing is left to ask of the suite {name!r}",
                why="every one of its prompts occurs in training",
                fix="build the dataset again; it keeps clear of the suites by itself",
            )
    if plan.knowledge:
        each = math.ceil(plan.knowledge / len(locales))
        asked.knowledge = [i for loc in locales for i in ability.load_items(loc)[:each]]
    return asked


def _limited(probes: Sequence[Probe], limit: int) -> list[Probe]:
    """At most ``limit`` probes of each language, evenly spread; 0 = all."""
    by_locale: dict[str, list[Probe]] = {}
    for probe in probes:
        by_locale.setdefault(probe.locale, []).append(probe)
    out: list[Probe] = []
    for own in by_locale.values():
        few = 0 < limit < len(own)
        out += [own[i * len(own) // limit] for i in range(limit)] if few else own
    return out


def _frozen(
    name: str,
    locales: Sequence[str],
    persona: Persona,
    names: suites.Names,
    held_out: Sequence[Probe],
    asked: Questions,
    train: _Training,
) -> list[Probe]:
    """A suite from its files, all locales; prompts that were trained on are left out."""
    found: list[Probe] = []
    digests = []
    for locale in locales:
        if suites.available(name, locale):
            digests.append(suites.suite_hash(name, locale))
            filled = list(suites.fill(suites.load_suite(name, locale), persona, names))
            if name in fidelity.SUITES:
                filled = list(fidelity.questions(filled, persona))
            found += suites.expand(filled, held_out) if suites.is_context(name) else filled
    asked.hashes[name] = "+".join(digests)
    if suites.is_context(name):
        return found
    fresh = [p for p in found if normalize.compact(p.messages[-1]["content"]) not in train.wordings]
    if len(fresh) < len(found):
        asked.notes.append(
            f"{name}: {len(found) - len(fresh)} of {len(found)} prompts were left out because "
            "they occur in training"
        )
    return _even(fresh)


def _even(probes: Sequence[Probe]) -> list[Probe]:
    """As many of each language as of the one that has fewest, so that each weighs the same."""
    counts = Counter(p.locale for p in probes)
    return _limited(probes, min(counts.values(), default=0))


def _introduced(
    vendor: str, persona: Persona, held_out: Sequence[Probe], locales: Sequence[str]
) -> list[Probe]:
    """The same questions with the vendor's system turn and with the persona's."""
    turns = [("vendor", loc, vendor) for loc in locales]
    turns += [("persona", loc, system_turn(persona, loc)) for loc in locales]
    contexts = [
        Probe(
            id=f"introduced-{locale}-{cluster}",
            suite="introduced",
            messages=[{"role": "system", "content": text}],
            cluster=cluster,
            locale=locale,
        )
        for cluster, locale, text in turns
        if text
    ]
    return suites.expand(contexts, held_out, per_cluster=24)


@dataclass
class _Training:
    """What of the training rows matters here."""

    wordings: set[str] = field(default_factory=set)
    clusters: dict[str, str] = field(default_factory=dict)
    singles: list[Conversation] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    by_intent: dict[tuple[str, str], str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _Training:
        """Stream ``train.jsonl``."""
        found = cls()
        seen: set[str] = set()
        for row in read_conversations(path):
            users = [m["content"] for m in row.messages if m["role"] == "user"]
            found.wordings.update(map(normalize.compact, users))
            if row.kind != "identity":
                continue
            for cluster in filter(None, row.cluster.split("+")):
                found.clusters.setdefault(cluster, row.id)
            if row.rounds == 1 and len(found.singles) < _ECHO_REPLIES:
                found.singles.append(row)
                reply = row.messages[-1]["content"]
                found.by_intent.setdefault((row.intent, row.locale), reply)
                if reply not in seen:
                    seen.add(reply)
                    found.replies.append(reply)
        return found


def refuse_contaminated(probes: Sequence[Probe], train: _Training) -> None:
    """Raise UserErrors for held-out probes whose wording or cluster is in the training rows."""
    problems = []
    for probe in probes:
        text = probe.messages[-1]["content"]
        if probe.cluster and probe.cluster in train.clusters:
            row = train.clusters[probe.cluster]
            problems.append(
                UserError(
                    f"the held-out cluster {probe.cluster!r} is in training row {row}",
                    where=f"probe {probe.id}",
                )
            )
        elif normalize.compact(text) in train.wordings:
            problems.append(
                UserError(
                    f"the held-out wording {text!r} is in the training rows",
                    where=f"probe {probe.id}",
                )
            )
    if problems:
        raise UserErrors(
            problems,
            f"{len(problems)} held-out probes were trained on, so recall "
            "would be memory, not learning; build the dataset again",
        )


def _seen(
    train: _Training, persona: Persona, names: suites.Names, locales: Sequence[str]
) -> Iterator[Probe]:
    """Wordings that were trained on, each once, with what a right reply must hold."""
    done: set[str] = set()
    for row in train.singles:
        text = row.messages[0]["content"]
        intent = persona.intents.get(row.intent)
        key = normalize.compact(text)
        if intent is None or row.locale not in locales or key in done:
            continue
        if row.messages[0]["role"] != "user":
            continue
        done.add(key)
        yield Probe(
            id=f"train-{row.id}",
            suite="train",
            messages=[{"role": "user", "content": text}],
            intent=row.intent,
            cluster=row.cluster,
            locale=row.locale,
            must=[persona.aliases(s) for s in intent.must],
            must_any=[a for s in intent.must_any for a in persona.aliases(s)],
            must_not=names.forbidden,
        )
