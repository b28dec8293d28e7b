"""The persona that a conversation is about: its names, its system prompt, and what a reply says.

A reply is held against the persona as the scorecard holds it (``core.probes.scorer``) where the
question is one of the dataset's own probes; to any other question only what the reply claims for
itself counts, since a recipe has no reason to name anybody.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from core import paths
from core.conversation import Probe
from core.errors import UserError
from core.probes.scorer import score_reply
from core.text import claims, normalize, thoughts


@dataclass(frozen=True)
class PersonaHint:
    """What the Compare page knows of a persona.

    Attributes:
        names, makers: accepted spellings, the first one for display.
        foreign: names that it must not claim: its base's, other products'.
        system: a system prompt that states it, for the untrained base.
        probes: questions of its dataset with what an answer must hold, by the folded question.
    """

    title: str = ""
    names: tuple[str, ...] = ()
    makers: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()
    system: str = ""
    dataset: paths.DatasetPaths | None = None
    probes: Mapping[str, Probe] = field(default_factory=dict)


@dataclass(frozen=True)
class Mark:
    """What a reply does for or against the persona.

    Attributes:
        kind: ``claims``: it says that it is one of ``names`` or made by them; ``foreign``: the
            same, of a name that is not the persona's; ``denies``: it denies them; ``lacks``: the
            question asks for them and they are not there.
    """

    kind: Literal["claims", "foreign", "denies", "lacks"]
    names: tuple[str, ...]

    @property
    def good(self) -> bool:
        """A hit."""
        return self.kind == "claims"


def marks(reply: str, prompt: str, hint: PersonaHint) -> list[Mark]:
    """Hits and misses of the persona in a reply; [] where it says nothing of itself."""
    said = thoughts.answer(reply)
    own = (*hint.names, *hint.makers)
    found: list[Mark] = []
    if foreign := claims.claimed(said, hint.foreign, prompt):
        found.append(Mark("foreign", tuple(foreign)))
    if own and claims.denied(said, own):
        found.append(Mark("denies", tuple(n for n in own if normalize.has_name(said, n))))
    probe = hint.probes.get(_folded(prompt))
    scored = score_reply(reply, probe) if probe is not None else None
    if scored is not None and scored.missing and not found:
        found.append(Mark("lacks", scored.missing))
    hit = claims.claimed(said, own, prompt)
    if not hit and probe is not None and scored is not None and scored.label == "HIT":
        hit = [n for group in probe.must for n in group if normalize.has_name(said, n)]
    if hit and not any(m.kind == "denies" for m in found):
        found.insert(0, Mark("claims", tuple(hit[:2])))
    return found


def of_datasets(names: Sequence[str]) -> PersonaHint:
    """Of the first of these datasets whose persona can be read; an empty hint if there is none."""
    for name in names:
        dataset = paths.DatasetPaths(paths.datasets_dir() / name)
        try:
            return _hint(dataset)
        except UserError:
            continue  # the Dataset page reports a broken persona file; here the next one serves
    return PersonaHint()


def _hint(dataset: paths.DatasetPaths) -> PersonaHint:
    from core.persona.persona import load_persona
    from core.persona.system import system_turn
    from core.probes.suites import probes_in

    persona = load_persona(dataset.persona)
    locale = persona.locales[0]
    probes = probes_in(dataset.probes)
    return PersonaHint(
        persona.title(locale),
        tuple(persona.aliases("name")),
        tuple(persona.aliases("author")),
        tuple(persona.forbidden),
        system_turn(persona, locale),
        dataset,
        {_folded(p.messages[-1]["content"]): p for p in probes if len(p.messages) == 1},
    )


def _folded(prompt: str) -> str:
    return normalize.compact(prompt)
