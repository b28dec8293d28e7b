"""The system turn that states a persona."""

from __future__ import annotations

from random import Random

from core.persona import templating
from core.persona.persona import Persona


def system_turn(persona: Persona, locale: str, rng: Random | None = None) -> str:
    """A system turn of the persona's pack, or its name alone ('' if it has none).

    Args:
        rng: draws among the pack's; None = the first, which is the one that is exported.
    """
    texts = persona.pack.system.get(locale, [])
    if texts:
        text = rng.choice(texts) if rng else texts[0]
        return templating.render(text, persona.values(locale, rng or Random(0)))
    name = "name" in persona.pack.slots and templating.marked(persona.slot("name", locale))
    return templating.settled(f"You are {name}.") if name else ""
