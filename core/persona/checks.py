"""Whether a filled pack can be used: slots, sentences, clusters and the dialogue graph."""

from __future__ import annotations

from collections.abc import Iterator

from core.errors import UserError
from core.persona import templating
from core.persona.packfile import Document
from core.persona.schema import END, GENERAL, Intent, Pack, Slot
from core.text import normalize


def sentences(pack: Pack) -> Iterator[tuple[tuple[str | int, ...], str, str]]:
    """(path in the document, locale, sentence) of everything that gets rendered."""
    for key, intent in pack.intents.items():
        for locale, clusters in intent.user.items():
            for i, cluster in enumerate(clusters):
                for j, text in enumerate(cluster.t):
                    yield ("intents", key, "user", locale, i, "t", j), locale, text
        for kind in ("reply", "short", "disclosed"):
            block = getattr(intent, kind)
            for locale, texts in block.items() if isinstance(block, dict) else ():
                for i, text in enumerate(texts):
                    yield ("intents", key, kind, locale, i), locale, text
    for locale, texts in pack.system.items():
        for i, text in enumerate(texts):
            yield ("system", locale, i), locale, text


def check(pack: Pack, document: Document) -> list[UserError]:
    """Every fault that makes a pack unusable, with its line."""
    faults = [*_check_slots(pack, document), *_check_graph(pack, document)]
    bad = list(_check_sentences(pack, document))
    # A sentence that does not parse cannot be looked into further.
    return faults + (bad or [*_check_must(pack, document), *_check_clusters(pack, document)])


def _check_slots(pack: Pack, document: Document) -> Iterator[UserError]:
    for name, slot in pack.slots.items():
        for locale in pack.persona.locales:
            value = slot.items.get(locale) or slot.text.get(locale, "").strip()
            if slot.required and not value:
                yield UserError(
                    f"the slot {name!r} has no value for locale {locale!r}",
                    fix=f"fill it in the file, or pass --set {name}=...",
                    where=document.where("slots", name, "text", locale),
                )
    scored = {"name", "author"}.union(*([*i.must, *i.must_any] for i in pack.intents.values()))
    for name in [n for n in pack.slots if n in scored]:
        yield from _check_scored(pack.slots[name], name, document)
    for name in pack.params.keys() & pack.slots.keys():
        yield UserError(
            f"{name!r} is both a slot and a parameter",
            fix="rename one",
            where=document.where("params", name),
        )


def _check_scored(slot: Slot, name: str, document: Document) -> Iterator[UserError]:
    """Values that a reply is scored by must be told from other text: said before any training.

    A longer alias does not help: replies are trained with the value itself.
    """
    spellings: list[tuple[str | int, ...]] = [("text", locale) for locale in slot.text]
    spellings += [("aliases", i) for i in range(len(slot.aliases))]
    for place, value in zip(spellings, [*slot.text.values(), *slot.aliases], strict=True):
        if value.strip() and (reason := normalize.unmatchable(value)):
            yield UserError(
                f"{value!r} cannot be recognised in a reply ({name})",
                why=f"{reason}, so neither recall nor leak could be counted",
                fix="leave this spelling out of the aliases"
                if place[0] == "aliases"
                else "choose a name of two letters (two Chinese characters) or more that is no "
                "everyday word",
                where=document.where("slots", name, *place),
            )


def _check_sentences(pack: Pack, document: Document) -> Iterator[UserError]:
    declared = [*pack.slots, *pack.params]
    for loc, locale, text in sentences(pack):
        where = document.where(*loc)
        fault = templating.check(text, declared)
        if fault:
            yield UserError(fault, fix="correct the sentence", where=where)
            continue
        for name in sorted(templating.variables(text)):
            if name in pack.params:
                missing = not pack.params[name].get(locale)
            else:
                slot = pack.slots[name]
                undisclosed = loc[2] == "disclosed" and not any(slot.text.values())
                # An empty required slot is one problem (_check_slots), not one a sentence.
                missing = not (slot.required or undisclosed) and not (
                    slot.items.get(locale) or slot.text.get(locale)
                )
            if missing:
                yield UserError(
                    f"the sentence uses {name!r}, which has no value for locale {locale!r}",
                    fix=f"fill {name!r} for {locale!r} or take it out of the sentence",
                    where=where,
                )


def _check_must(pack: Pack, document: Document) -> Iterator[UserError]:
    for key, intent in pack.intents.items():
        for name in [*intent.must, *intent.must_any]:
            if name not in pack.slots:
                yield UserError(
                    f"unknown slot {name!r}",
                    fix=f"use one of {', '.join(pack.slots)}",
                    where=document.where("intents", key, "must"),
                )
        for kind in ("reply", "short", "disclosed"):
            block = getattr(intent, kind)
            for locale, texts in block.items() if isinstance(block, dict) else ():
                for i, text in enumerate(texts):
                    yield from _reply_fault(
                        intent, text, document.where("intents", key, kind, locale, i)
                    )


def _reply_fault(intent: Intent, text: str, where: str) -> Iterator[UserError]:
    used = templating.variables(text)
    for name in intent.must:
        if name not in used:
            yield UserError(
                f"this reply lacks its 'must' slot {name!r}",
                why="it would be trained on, and then scored as wrong",
                fix=f"put {{{{ {name} }}}} into the reply, or drop {name!r} from 'must'",
                where=where,
            )
    if intent.must_any and not used & set(intent.must_any):
        yield UserError(
            f"this reply has none of the slots {', '.join(intent.must_any)}",
            fix="put one of them into the reply, or change 'must_any'",
            where=where,
        )


def _check_clusters(pack: Pack, document: Document) -> Iterator[UserError]:
    owner: dict[str, str] = {}
    wording: dict[tuple[str, str], str] = {}
    for key, intent in pack.intents.items():
        for locale, clusters in intent.user.items():
            if locale not in pack.persona.locales:
                yield UserError(
                    f"locale {locale!r} is not in persona.locales",
                    fix="add it there",
                    where=document.where("intents", key, "user", locale),
                )
            seen: set[str] = set()
            for i, cluster in enumerate(clusters):
                where = document.where("intents", key, "user", locale, i)
                if owner.setdefault(cluster.c, key) != key or cluster.c in seen:
                    yield UserError(
                        f"the cluster name {cluster.c!r} is used before",
                        where=where,
                        why="held-out wordings are told apart by cluster name",
                        fix="give this cluster a name of its own",
                    )
                seen.add(cluster.c)
                for text in cluster.t:
                    first = wording.setdefault((locale, normalize.compact(text)), cluster.c)
                    if first != cluster.c:
                        yield UserError(
                            f"{text!r} stands in the clusters {first!r} and {cluster.c!r}",
                            why="one of them may be held out, and then it would be trained on",
                            fix="keep it in one cluster",
                            where=where,
                        )
        if intent.trained:
            yield from _missing_locales(pack, key, intent, document)


def _missing_locales(
    pack: Pack, key: str, intent: Intent, document: Document
) -> Iterator[UserError]:
    for locale in pack.persona.locales:
        for kind in ("user", "reply"):
            block = getattr(intent, kind)
            if not block.get(locale):
                yield UserError(
                    f"intent {key!r} has no {kind!r} sentences for locale {locale!r}",
                    fix="add some, or remove the locale from persona.locales",
                    where=document.where("intents", key, kind),
                )


def _check_graph(pack: Pack, document: Document) -> Iterator[UserError]:
    trained = {k for k, i in pack.intents.items() if i.trained}
    for key, intent in pack.intents.items():
        for i, step in enumerate(intent.next):
            if step.to != END and step.to not in trained:
                yield UserError(
                    f"'next' leads to {step.to!r}, which is no intent with replies",
                    fix=f"use an intent of this file or {END}",
                    where=document.where("intents", key, "next", i),
                )
    for name in pack.dialogues.start:
        if name != GENERAL and name not in trained:
            yield UserError(
                f"dialogues start at {name!r}, which is no intent with replies",
                fix=f"use an intent of this file or {GENERAL}",
                where=document.where("dialogues", "start"),
            )
