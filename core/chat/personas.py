"""The persona of the newest dataset: its names to look for, and a system prompt that states it."""

from __future__ import annotations

from dataclasses import dataclass

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
    from core.persona.persona import load_persona
    from core.persona.system import system_turn

    persona = load_persona(dataset.persona)
    locale = persona.locales[0]
    names = [*persona.aliases("name"), *persona.aliases("author")]
    return PersonaHint(persona.title(locale), tuple(names), system_turn(persona, locale))
