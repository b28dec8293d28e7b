"""The persona of the newest dataset: its names to look for, and a system prompt that states it."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from core import paths
from core.errors import UserError


@dataclass(frozen=True)
class PersonaHint:
    """What the Compare page offers before anybody has typed anything."""

    title: str = ""
    names: tuple[str, ...] = ()
    system: str = ""


def newest() -> PersonaHint:
    """Of the newest dataset that has a persona; an empty hint if there is none."""
    root = paths.datasets_dir()
    if not root.is_dir():
        return PersonaHint()
    datasets = [paths.DatasetPaths(f) for f in root.iterdir() if f.is_dir()]
    whole = [d for d in datasets if d.manifest.is_file() and d.persona.is_file()]
    for dataset in sorted(whole, key=lambda d: d.manifest.stat().st_mtime, reverse=True):
        try:
            return _hint(dataset)
        except UserError:
            continue  # the Dataset page reports a broken persona file; here the next one serves
    return PersonaHint()


def _hint(dataset: paths.DatasetPaths) -> PersonaHint:
    from core.persona import templating
    from core.persona.persona import load_persona

    persona = load_persona(dataset.persona)
    locale = persona.locales[0]
    names = [*persona.aliases("name"), *persona.aliases("author")]
    texts = persona.pack.system.get(locale, [])
    system = ""
    if texts:
        system = templating.render(texts[0], persona.values(locale, Random(0)))
    elif persona.aliases("name"):
        system = f"You are {persona.slot('name', locale)}."
    return PersonaHint(persona.title(locale), tuple(names), system)
