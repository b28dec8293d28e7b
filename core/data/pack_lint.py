"""What is wrong with a pack before it is rendered.

Faults that make a pack unusable are raised by ``load_persona``; this module finds what it can be
used with, but should not: ``error`` = do not train on it, ``warning`` = the score will suffer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from core.data import placeholders
from core.data.findings import Finding
from core.data.generation import split
from core.persona.checks import sentences
from core.persona.persona import Persona, trained_intents
from core.persona.schema import END, GENERAL
from core.text import textstats
from core.text.claims import claimed

#: Fewer skeletons than this per intent, and one sentence gets learned by heart.
MIN_SKELETONS = 4
#: Fewer clusters, and one held-out cluster leaves too little to learn from.
MIN_CLUSTERS = 3

_PROMISE = re.compile(r"\bI(?: can| will|'ll) ([a-z][^.!?{]*)|我(?:可以|能|会)([^。！？，{]+)")
#: What may follow "I can" without promising a skill.
_HARMLESS = re.compile(
    r"^(?:also )?(?:help(?: you)?(?: with)?|say|tell you|be|not|only|answer|make mistakes)\b\s*"
    r"|^(?:帮忙|帮你?|说|告诉|犯错|出错)"
)


def lint_pack(persona: Persona) -> list[Finding]:
    """Rules that need no rendering."""
    rules: tuple[Callable[[Persona], Iterator[Finding]], ...] = (
        _few_sentences,
        _leftovers,
        _reply_in_families,
        _unreachable,
        _forbidden_in_text,
        _unlisted_skills,
        _one_sided,
    )
    return [finding for rule in rules for finding in rule(persona)]


def _few_sentences(persona: Persona) -> Iterator[Finding]:
    for locale in persona.locales:
        for key in trained_intents(persona, locale):
            intent = persona.intents[key]
            where = f"intents.{key}"
            clusters, replies = len(intent.user[locale]), len(persona.replies(intent, locale))
            if clusters < MIN_CLUSTERS:
                yield Finding(
                    "warning",
                    "few-clusters",
                    f"{key} has {clusters} wording clusters in {locale}",
                    f"write at least {MIN_CLUSTERS}: one in three is held out",
                    f"{where}.user.{locale}",
                )
            if replies < MIN_SKELETONS:
                yield Finding(
                    "warning",
                    "few-replies",
                    f"{key} has {replies} replies in {locale}",
                    f"write at least {MIN_SKELETONS}, or they are learned by heart",
                    f"{where}.reply.{locale}",
                )


def _leftovers(persona: Persona) -> Iterator[Finding]:
    for loc, _, text in sentences(persona.pack):
        plain = re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", text, flags=re.DOTALL)
        mark = placeholders.leftover(plain)
        if mark:
            yield Finding(
                "error",
                "leftover",
                f"{mark!r} would be learned as text",
                "write the slot as {{ name }}",
                ".".join(map(str, loc)),
            )


def _reply_in_families(persona: Persona) -> Iterator[Finding]:
    families: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for key, intent in persona.intents.items():
        if isinstance(intent.reply, dict):
            for locale, texts in intent.reply.items():
                for text in texts:
                    families[locale, textstats.normal(text)][intent.family] = key
    for (locale, _), where in families.items():
        if len(where) > 2:
            names = ", ".join(where.values())
            yield Finding(
                "warning",
                "same-reply",
                f"one reply serves {names} ({locale})",
                "give each intent replies of its own, or the model answers all alike",
                f"intents.{next(iter(where.values()))}.reply.{locale}",
            )


def _unreachable(persona: Persona) -> Iterator[Finding]:
    for locale in persona.locales:
        keys = trained_intents(persona, locale)
        steps = {k: [s.to for s in persona.intents[k].next] for k in keys}
        start = [k for k in persona.pack.dialogues.start if k != GENERAL] or list(keys)
        if GENERAL in persona.pack.dialogues.start:
            start = list(keys)  # after a general turn any intent may come
        seen, todo = set(start), list(start)
        while todo:
            for step in steps.get(todo.pop(), ()):
                if step != END and step not in seen:
                    seen.add(step)
                    todo.append(step)
        lost = [k for k in keys if k not in seen]
        if lost:
            yield Finding(
                "warning",
                "unreachable",
                f"no dialogue in {locale} comes to {', '.join(lost)}",
                "add them to 'next' of another intent or to dialogues.start",
                "dialogues.start",
            )
        if not any(END in s or not s for s in steps.values()):
            yield Finding(
                "warning",
                "no-end",
                "no intent leads to END",
                "add {to: END, p: 0.1} where a talk may stop",
                "dialogues",
            )


def _forbidden_in_text(persona: Persona) -> Iterator[Finding]:
    """Names claimed by a skeleton itself; slots are judged after rendering."""
    names = persona.forbidden
    for loc, _, text in sentences(persona.pack):
        if loc[0] == "intents" and loc[2] in ("reply", "short", "disclosed"):
            for name in claimed(text, names):
                yield Finding(
                    "error",
                    "forbidden-claim",
                    f"this reply claims to be {name}",
                    "deny it or take it out",
                    ".".join(map(str, loc)),
                )


def _unlisted_skills(persona: Persona) -> Iterator[Finding]:
    """A reply that promises, in fixed words, what the list slots do not name.

    A pack copied for another character tends to keep the promises of the old one.
    """
    for key, intent in persona.intents.items():
        for locale, texts in intent.reply.items() if isinstance(intent.reply, dict) else ():
            known = " ".join(persona.aliases("skills")).casefold()
            for i, text in enumerate(texts):
                for match in _PROMISE.finditer(text):
                    promise = _HARMLESS.sub("", (match.group(1) or match.group(2)).strip())
                    if promise and not _named(promise, known):
                        yield Finding(
                            "warning",
                            "unlisted-skill",
                            f"the reply promises {promise!r}, which is not in 'skills'",
                            "use {{ skills | words }}, or add it to the slot",
                            f"intents.{key}.reply.{locale}.{i}",
                        )


def _named(promise: str, known: str) -> bool:
    words = [w for w in textstats.tokens(promise) if len(w) > 3 or not w.isascii()]
    return not words or any(w in known for w in words)


def _one_sided(persona: Persona) -> Iterator[Finding]:
    sides = split(persona, seed=0)  # the seed decides which clusters are held out, not how many
    for locale in persona.locales:
        for key in trained_intents(persona, locale):
            names = {c.c for c in persona.intents[key].user[locale]}
            if not names & sides.train:
                yield Finding(
                    "error",
                    "nothing-trained",
                    f"all wordings of {key} are held out",
                    "add clusters",
                    f"intents.{key}.user.{locale}",
                )
            if not names & sides.held_out:
                yield Finding(
                    "warning",
                    "nothing-held-out",
                    f"no wording of {key} is held out in {locale}",
                    "add a cluster, or this intent cannot be scored",
                    f"intents.{key}.user.{locale}",
                )


def lint_slots(persona: Persona, tokenizer: Any, locales: Sequence[str] = ()) -> list[Finding]:
    """Slot values that this model's tokenizer cannot carry: control tokens, missing bytes.

    ``locales``: the languages whose values are looked at (default: all of the persona).

    Small vocabularies lack the bytes of rare scripts; such a character becomes "unknown", and the
    model would learn that instead of the name.
    """
    found = []
    special = [str(t) for t in getattr(tokenizer, "all_special_tokens", []) if t]
    for name in persona.pack.slots:
        for value in _slot_values(persona, name, locales or persona.locales):
            token = next((t for t in special if t in value), "")
            if token:
                found.append(
                    Finding(
                        "error",
                        "control-token",
                        f"{token!r} stands in {name!r}",
                        "it would end the turn; remove it",
                        f"slots.{name}",
                    )
                )
            elif _spelled(value, tokenizer) != value:
                found.append(
                    Finding(
                        "error",
                        "unwritable",
                        f"the model has no tokens for {value!r} ({name})",
                        "spell it in characters that the model knows",
                        f"slots.{name}",
                    )
                )
    return found


def _slot_values(persona: Persona, name: str, locales: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(v for loc in locales for v in persona.items(name, loc) if v))


def _spelled(text: str, tokenizer: Any) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False)
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
