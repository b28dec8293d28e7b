"""The texts in other languages: a gettext catalogue a language, beside this module.

The English sentence is the key. Holes are named (``{name}``) or, in messages of core, numbered in
the order in which the English has them (``{0}``).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Literal

from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

#: Texts of the pages, marked there; messages of core, recognised by core.language.messages.
Domain = Literal["pages", "core"]
#: Code -> what the language calls itself. English needs no catalogue.
LANGUAGES = {"en": "English", "zh": "中文"}
ENGLISH = "en"


def path_of(language: str, domain: Domain = "pages") -> Path:
    """Where a catalogue stands: ``zh.po`` of the pages, ``core.zh.po`` of core's messages."""
    prefix = "core." if domain == "core" else ""
    return Path(__file__).with_name(f"{prefix}{language}.po")


@cache
def catalog(language: str, domain: Domain = "pages") -> Catalog:
    """A catalogue of ``language``, read once; empty for English."""
    if language == ENGLISH:
        return Catalog(locale=language)
    with path_of(language, domain).open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


def nearest(locale: str | None) -> str:
    """The language of ours for what a browser asks: ``zh-CN`` -> ``zh``, ``de`` -> ``en``."""
    code = re.split(r"[-_]", (locale or "").lower())[0]
    return code if code in LANGUAGES else ENGLISH


def translate(template: str, language: str, **values: object) -> str:
    """``template`` in ``language``, with the values put in afterwards.

    Args:
        template: the English sentence, ``{name}`` where a value goes; ``{n:,}`` works too.
        language: a key of LANGUAGES.
        values: what goes into the holes. They are put in as they are, so text of others is made
            safe before (core.chat.render).

    A template without a translation is shown in English; a test keeps that from being delivered.
    """
    return _filled(_found(template, language, 0) or template, values)


def translate_count(one: str, many: str, number: int, language: str, **values: object) -> str:
    """``1 row`` or ``2 rows``: the form that ``number`` asks for, with ``{n}`` as 1,234."""
    english = one if number == 1 else many
    form = _found(one, language, number) or english
    return _filled(form, {"n": f"{number:,}", **values})


def _found(template: str, language: str, number: int) -> str:
    """The translation, or ''. ``number`` chooses among the forms of a plural."""
    if language == ENGLISH or not template:
        return ""
    known = catalog(language)
    message = known.get(template)
    if message is None:
        return ""
    if isinstance(message.string, tuple):
        return message.string[0] if known.num_plurals == 1 else message.string[int(number != 1)]
    return str(message.string)


def _filled(text: str, values: dict[str, object]) -> str:
    return Formatter().vformat(text, (), values) if values else text
