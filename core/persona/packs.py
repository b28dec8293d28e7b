"""Persona packs that a person can choose: the shipped ones, and their own copies."""

from __future__ import annotations

from pathlib import Path

from core import paths
from core.errors import UserError
from core.fsio import atomic_write_text, check_name, disk_errors, read_text, safe_join
from core.persona.packfile import parse_yaml
from core.persona.persona import Persona, list_packs, load_persona, parse_persona


def all_packs() -> dict[str, Path]:
    """Name -> file; an own pack hides a shipped one of the same name."""
    shipped = {p.stem: p for p in list_packs(paths.TEMPLATES)}
    own = {p.stem: p for p in list_packs(paths.packs_dir())} if paths.packs_dir().is_dir() else {}
    return {**shipped, **own}


def find(name: str) -> Path:
    """UserError with the list if there is no such pack."""
    packs = all_packs()
    if name not in packs:
        raise UserError(
            f"there is no persona pack {name!r}", fix=f"use one of {', '.join(packs) or '(none)'}"
        )
    return packs[name]


def title(name: str, locale: str = "en") -> str:
    """What a list calls a pack: read from the head of its file, for a whole pack takes a second."""
    try:
        head = text_of(name).partition("\nslots:")[0]
        titles = parse_yaml(head, name).data["persona"]["title"]
        return str(titles.get(locale) or titles["en"])
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return name  # choosing it tells what is wrong with it


def text_of(name: str) -> str:
    """The YAML of a pack. Raises UserError: there is none, or the disk refuses."""
    with disk_errors(f"the persona pack {name!r} cannot be read"):
        return read_text(find(name))


def is_own(path: Path) -> bool:
    """Whether the pack may be edited."""
    return path.parent == paths.packs_dir()


def duplicate(name: str, new_name: str) -> Path:
    """Copy a pack to an own one that can be edited."""
    text = text_of(name)
    target = safe_join(paths.packs_dir(), f"{check_name(new_name, 'pack name')}.yaml")
    if new_name in all_packs():
        raise UserError(f"the pack name {new_name!r} is taken", fix="choose another name")
    atomic_write_text(target, text)
    return target


def write(name: str, text: str) -> Persona:
    """Save the text of an own pack, if it is a valid pack.

    Raises:
        UserErrors: every fault with its line; the file stays as it was.
        UserError: the pack is a shipped one.
    """
    path = find(name)
    if not is_own(path):
        raise UserError(f"{name!r} is a shipped pack", fix="duplicate it and edit the copy")
    persona = parse_persona(text, path.name)
    atomic_write_text(path, text)
    return persona


def delete(name: str) -> None:
    """Remove an own pack."""
    path = find(name)
    if not is_own(path):
        raise UserError(f"{name!r} is a shipped pack", fix="only own packs can be deleted")
    path.unlink()


def load(name: str, overrides: dict[str, str] | None = None) -> Persona:
    """``load_persona`` by name."""
    return load_persona(find(name), overrides)
