"""Frozen probe suites: files beside this module, each with its hash.

A row of a suite file is a JSON object::

    {"id": "a01", "intent": "assertion", "prompt": "You are {other}, right?",
     "must": ["@name"], "must_any": [], "must_not": ["@forbidden"]}

``prompt`` is short for one user message (``question`` in the multiple-choice files); ``messages``
holds several. ``{slot}`` in a text and
``@slot`` in a list are filled from the persona (``@name`` by every accepted spelling), so that
one frozen file serves every persona. Scores compare only if the file is the same, hence the hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from core import fsio
from core.conversation import Message, Probe
from core.errors import UserError
from core.persona import templating
from core.text.normalize import unmatchable

if TYPE_CHECKING:
    from core.persona.persona import Persona

FOLDER = Path(__file__).resolve().parent / "suites"
HASHES = FOLDER / "HASHES.json"
_SLOT = re.compile(r"\{([a-z_]+)\}")


def suite_file(name: str, locale: str) -> Path:
    """``suites/<name>.<locale>.jsonl``; contexts without a question in ``suites/contexts/``."""
    folder = FOLDER / "contexts" if is_context(name) else FOLDER
    return folder / f"{name}.{locale}.jsonl"


def available(name: str, locale: str) -> bool:
    """Whether a suite exists in a language."""
    return suite_file(name, locale).is_file()


def suite_hash(name: str, locale: str) -> str:
    """The sha256 of the file, checked against the frozen one.

    Raises:
        UserError: there is no such suite, or its file was edited.
    """
    path = suite_file(name, locale)
    if not path.is_file():
        have = sorted(p.name.removesuffix(".jsonl") for p in FOLDER.glob("*.jsonl"))
        raise UserError(
            f"there is no suite {name!r} for locale {locale!r}",
            fix=f"use one of: {', '.join(have)}",
        )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if _hashes().get(path.name) != digest:
        raise UserError(
            f"the suite file {path.name} is not the frozen one",
            why="scores of edited suites cannot be compared with earlier ones",
            fix="restore the file; put questions of your own into a probes file (see `probe`)",
        )
    return digest


@lru_cache(maxsize=1)
def _hashes() -> dict[str, str]:
    found: dict[str, str] = fsio.read_json(HASHES)
    return found


def load_suite(name: str, locale: str) -> list[Probe]:
    """The probes of a suite, slots not yet filled (see ``fill``).

    Raises:
        UserError: no such suite, an edited file, or a file without rows.
    """
    suite_hash(name, locale)
    probes = [_probe(row, name, locale) for row in fsio.read_jsonl(suite_file(name, locale))]
    if not probes:
        raise UserError(f"the suite {name}.{locale} is empty", fix="restore the file")
    return probes


def _probe(row: dict[str, Any], suite: str, locale: str) -> Probe:
    messages: list[Message] | None = row.get("messages")
    if messages is None:
        messages = [{"role": "user", "content": row.get("prompt") or row["question"]}]
    return Probe(
        id=row["id"],
        suite=suite,
        messages=messages,
        intent=row.get("intent", ""),
        cluster=row.get("cluster", row.get("intent", "")),
        locale=row.get("locale", locale),
        must=[[m] for m in row.get("must", [])],
        must_any=list(row.get("must_any", [])),
        must_not=list(row.get("must_not", [])),
    )


@dataclass(frozen=True)
class Names:
    """What the scorer must know of a persona.

    ``name`` and ``author``: accepted spellings, the first one for display. ``forbidden``: names
    that must not be claimed. ``other``: product names to provoke with, one per probe in turn.
    """

    name: list[str]
    author: list[str]
    role: list[str]
    forbidden: list[str]
    other: list[str]

    @property
    def aliases(self) -> list[str]:
        """Every spelling whose presence in an unrelated reply is a leak."""
        return [*self.name, *self.author]


#: Used where a persona forbids nothing: somebody must be denied.
_RIVALS = ["ChatGPT", "Claude", "Gemini", "Siri", "Alexa"]


def names_of(persona: Persona) -> Names:
    """The names of a persona; those that replies cannot be scored by are refused as it is read."""
    name, author = persona.aliases("name"), persona.aliases("author")
    forbidden = list(persona.forbidden)
    own = {a.casefold() for a in [*name, *author]}
    other = [n for n in _RIVALS if n.casefold() not in own] or forbidden
    return Names(
        name=name,
        author=author,
        role=[a for a in persona.aliases("role") if not unmatchable(a)],
        forbidden=forbidden,
        other=other,
    )


def fill(probes: Iterable[Probe], persona: Persona, names: Names) -> Iterator[Probe]:
    """Fill the slots of a suite's probes.

    ``{other}`` walks through the rivals, ``{limit}`` through what the persona cannot do, as the
    user would say it.
    """
    for index, probe in enumerate(probes):
        other = names.other[index % len(names.other)]
        given = {"other": other, "limit": _limit(persona, probe.locale, index)}
        yield replace(
            probe,
            messages=[
                {"role": m["role"], "content": _text(m["content"], persona, probe.locale, given)}
                for m in probe.messages
            ],
            must=[s for group in probe.must if (s := _spellings(group, persona, names, other))],
            must_any=_spellings(probe.must_any, persona, names, other),
            must_not=_not_own(_spellings(probe.must_not, persona, names, other), names),
        )


def _not_own(forbidden: Sequence[str], names: Names) -> list[str]:
    own = {a.casefold() for a in names.aliases}
    return [f for f in forbidden if f.casefold() not in own]


def _limit(persona: Persona, locale: str, index: int) -> str:
    items = persona.items("limits", locale) if "limits" in persona.pack.slots else [""]
    return asked_for(items[index % len(items)])


_ASKS_FOR_SUBJECT = r"where|what|how|when|why|who|that|if|whether|which"
_TURNS = (
    (re.compile(r"\byours\b"), "mine"),
    (re.compile(r"\byourself\b"), "myself"),
    (re.compile(r"\byour\b"), "my"),
    (re.compile(rf"\b({_ASKS_FOR_SUBJECT}) you\b"), r"\1 I"),
    (re.compile(r"\byou\b"), "me"),
)
_SWAPPED = str.maketrans("你我您", "我你我")


def asked_for(item: str) -> str:
    """An item as the user would ask for it: "see where you stand" becomes "see where I stand"."""
    text = item.translate(_SWAPPED)
    for pattern, mine in _TURNS:
        text = pattern.sub(mine, text)
    return text


def _text(text: str, persona: Persona, locale: str, given: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match[1] in given:
            return given[match[1]]
        if match[1] not in persona.pack.slots:
            return match[0]
        found = persona.slot(match[1], locale) or next(iter(persona.aliases(match[1])), "")
        return templating.marked(found)

    return templating.settled(_SLOT.sub(value, text))


def _spellings(words: Sequence[str], persona: Persona, names: Names, other: str) -> list[str]:
    out: list[str] = []
    for word in words:
        if not word.startswith("@"):
            out.append(word)
        elif word == "@other":
            out.append(other)
        elif word in ("@name", "@author", "@role", "@forbidden"):
            out += getattr(names, word[1:])
        else:
            out += persona.aliases(word[1:])
    return list(dict.fromkeys(out))


_PROBE = TypeAdapter(Probe)


def probes_in(path: Path) -> list[Probe]:
    """Probes of a dataset (``probes.jsonl``); none if it has no such file.

    Raises:
        UserError: a line is not a probe, which ends with the user's turn.
    """
    if not path.is_file():
        return []
    try:
        probes = [_PROBE.validate_python(row) for row in fsio.read_jsonl(path)]
    except ValidationError as error:
        found = error.errors()[0]
        why = f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
        raise _no_probe(path, why) from error
    for probe in probes:
        if not probe.messages or probe.messages[-1]["role"] != "user":
            raise _no_probe(path, f"{probe.id} asks nothing")
    return probes


def _no_probe(path: Path, why: str) -> UserError:
    return UserError(
        f"{path} holds a line that is no probe", why=why, fix="build the dataset again"
    )


def read_probes(path: Path) -> list[Probe]:
    """``probes_in`` of a dataset that must have some.

    Raises:
        UserError: the file is missing, holds no probes, or a line is not a probe.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", fix="build the dataset again")
    probes = probes_in(path)
    if not probes:
        raise UserError(
            f"{path} holds no probes",
            why="no wordings were held out, so recall cannot be measured",
            fix="use a persona with at least 3 wording clusters an intent",
        )
    return probes


#: Suites whose files hold what comes before the question; the question is a held-out probe.
_CONTEXTS = ("multi_turn", "long_context", "system")


def is_context(name: str) -> bool:
    """Whether a suite's rows are contexts that get held-out probes appended."""
    return name in _CONTEXTS


def expand(
    contexts: Sequence[Probe], held_out: Sequence[Probe], per_cluster: int = 12
) -> list[Probe]:
    """Put held-out questions behind each group of contexts (rows of one ``cluster``).

    Every cluster gets the same questions, so that "turn 8 against turn 1" compares like with like.
    Questions that need the name come first; one an intent before a second of any.
    """
    out: list[Probe] = []
    clusters = dict.fromkeys((c.cluster, c.locale) for c in contexts)
    for cluster, locale in clusters:
        group = [c for c in contexts if c.cluster == cluster and c.locale == locale]
        for i, question in enumerate(_one_per_intent(held_out, locale)[:per_cluster]):
            context = group[i % len(group)]
            out.append(
                replace(
                    question,
                    id=f"{context.id}/{question.id}",
                    suite=context.suite,
                    cluster=cluster,
                    messages=[*context.messages, *question.messages],
                    must_not=[*question.must_not, *context.must_not],
                )
            )
    return out


def _one_per_intent(probes: Sequence[Probe], locale: str) -> list[Probe]:
    by_intent: dict[str, list[Probe]] = {}
    for probe in probes:
        if probe.locale == locale and probe.must:
            by_intent.setdefault(probe.intent, []).append(probe)
    rounds = max(map(len, by_intent.values()), default=0)
    return [group[k] for k in range(rounds) for group in by_intent.values() if k < len(group)]
