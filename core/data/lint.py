"""What is wrong with a pack before rendering, and with rows after it.

Faults that make a pack unusable are raised by ``load_persona``; this module finds what a pack or a
dataset can be used with, but should not: ``error`` = do not train on it, ``warning`` = the score
will suffer, ``note`` = look at it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from core.conversation import Conversation, Probe
from core.data.contamination import Contamination
from core.data.findings import Finding
from core.data.generation import split
from core.persona.persona import Persona, sentences, trained_intents
from core.persona.schema import END, GENERAL, Intent
from core.text import textstats

#: Fewer skeletons than this per intent, and one sentence gets learned by heart.
MIN_SKELETONS = 4
#: Fewer clusters, and one held-out cluster leaves too little to learn from.
MIN_CLUSTERS = 3

_LEFTOVER = re.compile(
    r"\{\{|\}\}|\{%|%\}|<(?:NAME|AUTHOR|ROLE|name|author|role)>|\[(?:NAME|AUTHOR)\]"
)
_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]{2,}\b")
_PHONE = re.compile(r"(?<![\w.])\+?\d[\d ()-]{8,16}\d(?!\w)")
_PROMISE = re.compile(r"\bI(?: can| will|'ll) ([a-z][^.!?{]*)|我(?:可以|能|会)([^。！？，{]+)")
#: What may follow "I can" without promising a skill.
_HARMLESS = re.compile(
    r"^(?:also )?(?:help(?: you)?(?: with)?|say|tell you|be|not|only|answer|make mistakes)\b\s*"
    r"|^(?:帮忙|帮你?|说|告诉|犯错|出错)"
)


def lint_pack(persona: Persona, *, seed: int = 0) -> list[Finding]:
    """Rules that need no rendering."""
    rules: tuple[Callable[[Persona], Iterator[Finding]], ...] = (
        _few_sentences,
        _leftovers,
        _reply_in_families,
        _unreachable,
        _forbidden_in_text,
        _unlisted_skills,
    )
    found = [finding for rule in rules for finding in rule(persona)]
    return found + list(_one_sided(persona, seed))


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
        mark = _LEFTOVER.search(plain)
        if mark:
            yield Finding(
                "error",
                "leftover",
                f"{mark.group(0)!r} would be learned as text",
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
    from core.text.claims import claimed

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


def _one_sided(persona: Persona, seed: int) -> Iterator[Finding]:
    sides = split(persona, seed)
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


def lint_rows(
    rows: Iterable[Conversation],
    persona: Persona | None = None,
    *,
    probes: Sequence[Probe] = (),
    control_tokens: Sequence[str] = (),
) -> list[Finding]:
    """Rules on rendered rows; findings of one rule are merged, with a count and the first place.

    Args:
        persona: whose names and ``must`` slots are checked.
        probes: held-out questions, none of which may be trained on.
        control_tokens: the tokenizer's special tokens; in a text they would end a turn.
    """
    checker = _RowChecker(persona, probes, control_tokens)
    merged: dict[tuple[str, str], Finding] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for finding in checker.check(row):
            key = (finding.rule, finding.message)
            counts[key] += 1
            merged.setdefault(key, finding)
    order = {"error": 0, "warning": 1, "note": 2}
    found = [Finding(**{**vars(f), "count": counts[key]}) for key, f in merged.items()]
    return sorted(found, key=lambda f: (order[f.level], f.rule, -f.count))


class _RowChecker:
    def __init__(
        self, persona: Persona | None, probes: Sequence[Probe], control_tokens: Sequence[str]
    ) -> None:
        self._persona = persona
        self._forbidden = persona.forbidden if persona else []
        self._folded = [f.casefold() for f in self._forbidden]
        self._control = [t for t in control_tokens if t]
        self._contamination = Contamination(probes)
        self._seen: dict[int, str] = {}

    def check(self, row: Conversation) -> Iterator[Finding]:
        yield from self._shape(row)
        yield from self._texts(row)
        yield from self._twice(row)
        if row.kind == "identity" and self._persona:
            yield from self._replies(row, self._persona)
        yield from self._contamination.check(row)

    def _shape(self, row: Conversation) -> Iterator[Finding]:
        roles = [m["role"] for m in row.messages]
        body = roles[1:] if roles[:1] == ["system"] else roles
        if body != ["user", "assistant"] * (len(body) // 2) or not body:
            yield Finding(
                "error",
                "roles",
                "user and assistant turns do not alternate",
                "mend the row: XTuner joins or drops such turns",
                row.id,
            )
        if not any(row.loss):
            yield Finding(
                "warning",
                "no-loss",
                "no reply of the row is trained on",
                "switch the loss of a reply on, or remove the row",
                row.id,
            )

    def _texts(self, row: Conversation) -> Iterator[Finding]:
        for message in row.messages:
            text = message["content"]
            if not text.strip():
                yield Finding(
                    "error",
                    "empty",
                    f"an empty {message['role']} turn",
                    "write a text or remove the row",
                    row.id,
                )
            for token in self._control:
                if token in text:
                    yield Finding(
                        "error",
                        "control-token",
                        f"{token!r} stands in a text",
                        "it would end the turn; remove it",
                        row.id,
                    )
            # Rehearsal replies may explain braces (code); a slot left open is ours or the user's.
            if row.kind in ("identity", "own") and not self._is_slot_text(text):
                yield Finding(
                    "warning",
                    "leftover",
                    "braces or a placeholder were left in a text",
                    "fill the slot",
                    row.id,
                )
            if row.kind != "identity" and (_EMAIL.search(text) or _PHONE.search(text)):
                yield Finding(
                    "note",
                    "personal-data",
                    "an e-mail address or phone number",
                    "remove it if it belongs to somebody",
                    row.id,
                )

    def _is_slot_text(self, text: str) -> bool:
        """Whether every placeholder-like mark comes from a slot value, which is plain data."""
        if not _LEFTOVER.search(text):
            return True
        if self._persona:
            for name in self._persona.pack.slots:
                for value in self._persona.aliases(name):
                    if _LEFTOVER.search(value):
                        text = text.replace(value, "")
        return not _LEFTOVER.search(text)

    def _twice(self, row: Conversation) -> Iterator[Finding]:
        key = hash("\0".join(m["content"] for m in row.messages))
        first = self._seen.setdefault(key, row.id)
        if first != row.id:
            yield Finding(
                "warning",
                "duplicate-row",
                "the row says the same as an earlier one",
                "remove it, or let the number of exposures do the repeating",
                row.id,
            )

    def _replies(self, row: Conversation, persona: Persona) -> Iterator[Finding]:
        for prompt, reply in _pairs(row):
            yield from self._claims(row, prompt, reply)
        if row.rounds == 1 and row.intent in persona.intents:
            intent = persona.intents[row.intent]
            reply = row.messages[-1]["content"]
            for name in _missing_must(intent, reply, persona):
                yield Finding(
                    "error",
                    "missing-must",
                    f"a reply to {row.intent} lacks {name}",
                    "put the slot into the reply",
                    row.id,
                )

    def _claims(self, row: Conversation, prompt: str, reply: str) -> Iterator[Finding]:
        low = f"{prompt}\n{reply}".casefold()
        near = [f for f, fold in zip(self._forbidden, self._folded, strict=True) if fold in low]
        if near:
            from core.text.claims import claimed

            for name in claimed(reply, near, prompt):
                yield Finding(
                    "error",
                    "forbidden-claim",
                    f"a reply claims to be {name}",
                    "deny it or take it out",
                    row.id,
                )


def _pairs(row: Conversation) -> Iterator[tuple[str, str]]:
    for before, message in zip(row.messages, row.messages[1:], strict=False):
        if message["role"] == "assistant":
            yield before["content"], message["content"]


def _missing_must(intent: Intent, reply: str, persona: Persona) -> Iterator[str]:
    low = reply.casefold()
    for name in intent.must:
        if not any(a.casefold() in low for a in persona.aliases(name)):
            yield name
    if intent.must_any and not any(
        a.casefold() in low for name in intent.must_any for a in persona.aliases(name)
    ):
        yield " or ".join(intent.must_any)
