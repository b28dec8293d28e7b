"""A persona: a pack with its slots filled, checked once, read everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import yaml

from core import fsio
from core.errors import UserError, UserErrors
from core.persona import checks, templating
from core.persona.packfile import Document, parse_document, read_document, to_pack
from core.persona.schema import Intent, Pack, Slot
from core.text import normalize

_ODD = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Dumper(yaml.SafeDumper):
    """Writes odd line breaks as escapes: PyYAML's plain styles lose them (NEL, U+2028)."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = '"' if _ODD.search(value) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)


@dataclass(frozen=True)
class Persona:
    """A filled pack. Every sentence in it renders; every reply holds its ``must`` slots."""

    pack: Pack
    source: str = ""
    _aliases: dict[str, list[str]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def id(self) -> str:
        return self.pack.persona.id

    @property
    def locales(self) -> list[str]:
        return list(self.pack.persona.locales)

    @property
    def intents(self) -> dict[str, Intent]:
        return self.pack.intents

    @property
    def forbidden(self) -> list[str]:
        """Names the persona must not claim for itself.

        A name that is part of the persona's own name or maker is its own, and the base model's
        name is allowed where ``base.disclose`` is not ``never``.
        """
        own = [normalize.compact(a) for slot in ("name", "author") for a in self.aliases(slot)]
        if self.disclose != "never":
            own += [normalize.compact(a) for a in self.aliases("base")]
        return [
            f
            for f in self.pack.forbid_self
            if not any(normalize.compact(f) in text for text in own)
        ]

    @property
    def disclose(self) -> str:
        """``never``, ``optional`` or ``always``: whether the base model may be named."""
        base = self.pack.slots.get("base")
        return (base.disclose or "never") if base and any(base.text.values()) else "never"

    def slot(self, name: str, locale: str) -> str:
        """The value of a slot; a list slot gives all its items, joined. KeyError if unknown."""
        slot = self.pack.slots[name]
        if slot.items:
            return templating.words(slot.items.get(locale, []))
        return slot.text.get(locale, "")

    def items(self, name: str, locale: str) -> list[str]:
        """The items of a list slot (one item for a text slot)."""
        slot = self.pack.slots[name]
        return list(slot.items.get(locale, [])) or [slot.text.get(locale, "")]

    def aliases(self, name: str) -> list[str]:
        """Every spelling that counts as the slot's value when a reply is scored."""
        if name not in self._aliases:
            slot = self.pack.slots.get(name) or Slot()
            values = [*slot.text.values(), *(i for v in slot.items.values() for i in v)]
            found = dict.fromkeys(v for v in [*values, *slot.aliases] if v.strip())
            self._aliases[name] = list(found)
        return list(self._aliases[name])

    def values(
        self, locale: str, rng: Random, extra: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """What one turn's sentences are rendered with; list slots are sampled, order kept."""
        values: dict[str, Any] = {}
        for name, slot in self.pack.slots.items():
            items = slot.items.get(locale)
            if items is None:
                values[name] = slot.text.get(locale, "")
            elif len(items) <= slot.pick:
                values[name] = items
            else:
                chosen = sorted(rng.sample(range(len(items)), slot.pick))
                values[name] = [items[i] for i in chosen]
        values.update(extra or {})
        return values

    def replies(self, intent: Intent, locale: str, *, later: bool = False) -> list[str]:
        """The skeletons to answer with, by ``base.disclose`` and the place in the dialogue."""
        plain = intent.reply.get(locale, []) if isinstance(intent.reply, dict) else []
        told = intent.disclosed.get(locale, [])
        if told and self.disclose != "never":
            plain = told if self.disclose == "always" else [*plain, *told]
        elif later:
            plain = intent.short.get(locale) or plain
        return [self._in_manner(text, locale) for text in plain]

    def _in_manner(self, skeleton: str, locale: str) -> str:
        """The skeleton ends in the slot ``manner``, unless it has the phrase where it wants it.

        In every reply: what comes now and then is neither learned by a small model nor countable.
        """
        manner = self.pack.slots.get("manner")
        if not (manner and manner.text.get(locale)) or "manner" in templating.variables(skeleton):
            return skeleton
        return f"{skeleton}{'' if locale in ('zh', 'ja') else ' '}{{{{ manner }}}}"

    def dump(self) -> str:
        """The filled pack as YAML; ``load_persona`` of it gives an equal persona."""
        data = self.pack.model_dump(by_alias=True, exclude_defaults=True)
        ordered = {"schema": "persona/1", **data}
        return yaml.dump(ordered, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=100)

    def title(self, locale: str = "en") -> str:
        """A name for lists of packs."""
        return self.pack.persona.title.get(locale) or self.id


def load_persona(path: Path, overrides: Mapping[str, str] | None = None) -> Persona:
    """Read a pack and fill its slots.

    Args:
        overrides: ``name`` (all locales), ``name.zh`` (one), ``name.aliases``, ``base.disclose``.
            The items of a list slot and aliases are separated by ``;`` or newlines. A new value
            drops the aliases of the old one.

    Raises:
        UserErrors: every fault of the file and of the overrides, with file, line, field and fix.
    """
    return _build(read_document(path), overrides or {})


def parse_persona(
    text: str, name: str = "persona.yaml", overrides: Mapping[str, str] | None = None
) -> Persona:
    """``load_persona`` for a text in memory (the page's editor)."""
    return _build(parse_document(text, name), overrides or {})


def _build(document: Document, overrides: Mapping[str, str]) -> Persona:
    pack = to_pack(document)
    faults = [f for key, value in overrides.items() for f in _override(pack, key, value)]
    faults += checks.check(pack, document)
    if faults:
        raise UserErrors(faults)
    return Persona(pack, document.name)


def _override(pack: Pack, key: str, value: str) -> Iterator[UserError]:
    name, _, part = key.partition(".")
    slot = pack.slots.get(name)
    if slot is None:
        yield UserError(
            f"unknown slot {name!r}",
            why=f"this persona has: {', '.join(pack.slots)}",
            fix="correct the name, or add the slot to the persona file",
            where=f"--set {key}",
        )
    elif _SURROGATE.search(value):
        yield UserError(
            "the value is not valid Unicode text", fix="type it again", where=f"--set {key}"
        )
    elif part == "aliases":
        slot.aliases = _split(value)
    elif part == "disclose":
        if value not in ("never", "optional", "always"):
            yield UserError(
                f"{value!r} is not a policy",
                fix="use never, optional or always",
                where=f"--set {key}",
            )
        else:
            slot.disclose = value  # type: ignore[assignment]
    elif part and part not in pack.persona.locales:
        yield UserError(
            f"no locale {part!r}",
            why=f"this persona speaks {', '.join(pack.persona.locales)}",
            fix=f"use {name} or {name}.{pack.persona.locales[0]}",
            where=f"--set {key}",
        )
    else:
        before = slot.model_dump()
        for locale in [part] if part else pack.persona.locales:
            if slot.items:
                slot.items[locale] = _split(value)
            else:
                slot.text[locale] = value
        if part and not slot.required and not slot.items and name != "manner":
            # A name such as the base's is the same in every language: a language that nobody
            # speaks here is not asked for it.
            for locale in pack.persona.locales:
                slot.text[locale] = slot.text.get(locale) or value
        if slot.model_dump() != before:
            slot.aliases = []


def _split(value: str) -> list[str]:
    return [item.strip() for item in re.split(r"[;\n；]", value) if item.strip()]


def list_packs(folder: Path) -> list[Path]:
    """The pack files of a folder, sorted by name."""
    return sorted(p for p in folder.glob("*.yaml") if fsio.NAME_RULE.fullmatch(p.stem))


def trained_intents(persona: Persona, locale: str) -> Sequence[str]:
    """Intents that the persona answers in ``locale``, in file order."""
    return [k for k, i in persona.intents.items() if i.trained and i.user.get(locale)]
