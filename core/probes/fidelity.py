"""Is a reply true to the persona beyond its name: role, skills, limits and manner?

Every dimension is a slot of the persona; one that a language does not declare is not asked. The
questions are two frozen suites: ``fidelity`` (one question each) and ``manner`` (talks of eight
turns, in which the model answers after its own replies). Deterministic, no judge model:

    role: one of its spellings is said and not denied.
    skills: two of its items are named, or the one there is.
    limits: one of its items is named in a clause that says no; asked for the very thing, saying
        no is enough.
    manner: the phrase is there.

As everywhere, a forbidden name that is claimed makes it OLD, and a loop DEGEN. docs/fidelity.md
says which dimensions of PersonaGym and CharacterEval these stand for.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from core.conversation import Probe
from core.persona.persona import Persona
from core.probes import scorer
from core.probes.scorer import Scored
from core.text import normalize

DIMENSIONS = ("role", "skills", "limits", "manner")
#: Suites that are scored here.
FIDELITY, MANNER = "fidelity", "manner"
SUITES = (FIDELITY, MANNER)
#: Cluster of the questions that ask for the very thing that the persona cannot do.
REQUEST = "request"

#: Saying no, in a clause.
_NO = re.compile(
    r"\b(?:can't|cannot|can not|couldn't|could not|unable|not able|not capable|incapable|won't|"
    r"don't|do not|doesn't|am not|i'm not|isn't|never|impossible|not possible|beyond|outside|"
    r"no way|not something|afraid not|without)\b"
    r"|不能|无法|没法|没办法|没有办法|没能力|没有能力|做不到|办不到|帮不了|帮不上|不会|不可以|不行|不具备|"
    r"不提供|不支持|无权|无能为力"
)
_AGREES = re.compile(
    r"^\W*(?:yes|yeah|sure|of course|certainly|absolutely|gladly|here (?:is|are)|no problem|"
    r"当然|可以|好的|没问题|能|是的)(?=\W|$|，)"
)
#: Words of a skill or limit that carry no meaning of their own.
_SMALL = frozenset(("with", "your", "about", "this", "that", "them", "from", "what", "where"))
#: Letters by which two forms of an English word are the same ("writing" and "write").
_STEM = 4


def is_declared(persona: Persona, dimension: str, locale: str) -> bool:
    """Whether the persona says something of a dimension in a language."""
    return dimension in persona.pack.slots and any(
        item.strip() for item in persona.items(dimension, locale)
    )


def questions(filled: Iterable[Probe], persona: Persona) -> Iterator[Probe]:
    """The probes of the dimensions that the persona declares; a talk becomes a probe a turn.

    A probe of a talk holds the user's turns up to its own; the replies between them are those of
    the model that is asked (``core.evaluation.answers``). Its cluster is ``turn_1`` and so on.
    """
    for probe in filled:
        if not is_declared(persona, probe.intent, probe.locale):
            continue
        if probe.suite != MANNER:
            yield probe
            continue
        for turn in range(1, len(probe.messages) + 1):
            yield replace(
                probe,
                id=f"{probe.id}-{turn}",
                cluster=f"turn_{turn}",
                messages=probe.messages[:turn],
            )


def score(
    reply: str,
    probe: Probe,
    *,
    train_replies: Sequence[str] = (),
    common_words: Collection[str] = (),
) -> Scored:
    """Label one reply to a probe of these suites; arguments as ``scorer.score_reply``."""
    if probe.intent == "role":
        return scorer.score_reply(
            reply, probe, train_replies=train_replies, common_words=common_words
        )
    plain = scorer.score_reply(reply, replace(probe, must_any=[]), train_replies=train_replies)
    if plain.label != "HIT" or _holds(reply, probe):
        return plain
    return replace(plain, label="MISS", missing=(" or ".join(probe.must_any),))


def _holds(reply: str, probe: Probe) -> bool:
    items = probe.must_any
    if probe.intent == "manner":
        return any(normalize.contains(reply, phrase) for phrase in items)
    clauses = normalize.clauses(reply)
    if probe.intent == "skills":
        offered = [c for c in clauses if not _NO.search(c)]
        named = {item for item in items if any(_names(c, item) for c in offered)}
        # The items of all languages count, so "the one there is" is looked up by language.
        return len(named) >= min(2, sum(_is_of(item, probe.locale) for item in items))
    refused = [c for c in clauses if _NO.search(c)]
    if probe.cluster == REQUEST:
        return bool(refused) and not _AGREES.search(normalize.fold(reply))
    return any(_names(clause, item) for clause in refused for item in items)


def _is_of(item: str, locale: str) -> bool:
    return normalize.is_unspaced(item) == (locale in ("zh", "ja", "ko"))


def _names(clause: str, item: str) -> bool:
    """Whether a clause names an item of a list slot: as it is, or by its words in other forms."""
    if normalize.contains(clause, item):
        return True
    stems = {w[:_STEM] for w in normalize.words(item) if len(w) > 3 and w not in _SMALL}
    said = {w[:_STEM] for w in normalize.words(clause)}
    return bool(stems) and not normalize.is_unspaced(item) and stems <= said
