"""The system turn that states a persona."""

from __future__ import annotations

from random import Random

from core.persona import templating
from core.persona.persona import Persona


def system_turn(persona: Persona, locale: str) -> str:
    """The first system turn of the persona's pack, or its name alone ('' if it has none)."""
    texts = persona.pack.system.get(locale, [])
    if texts:
        return templating.render(texts[0], persona.values(locale, Random(0)))
    name = templating.marked(persona.slot("name", locale))
    return templating.settled(f"You are {name}.") if name else ""
