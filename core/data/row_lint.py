"""What is wrong with rows once they are rendered or imported.

``error`` = do not train on it, ``warning`` = the score will suffer, ``note`` = look at it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from core.conversation import Conversation, Probe
from core.data import placeholders
from core.data.contamination import Contamination
from core.data.findings import Finding
from core.persona.persona import Persona
from core.persona.schema import Intent
from core.text import normalize
from core.text.claims import claimed

_EMAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.]{2,}\b")
_PHONE = re.compile(r"(?<![\w.])\+?\d[\d ()-]{8,16}\d(?!\w)")


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
        if not placeholders.leftover(text):
            return True
        if self._persona:
            for name in self._persona.pack.slots:
                for value in self._persona.aliases(name):
                    if placeholders.leftover(value):
                        text = text.replace(value, "")
        return not placeholders.leftover(text)

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
    """Slots that the scorer would miss in a reply, found as it finds them."""

    def said(name: str) -> bool:
        return any(normalize.contains(reply, alias) for alias in persona.aliases(name))

    yield from (name for name in intent.must if not said(name))
    if intent.must_any and not any(map(said, intent.must_any)):
        yield " or ".join(intent.must_any)
