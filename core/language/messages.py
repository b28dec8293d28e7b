"""Messages of core in the language of the reader.

Core speaks English: in exceptions, records, logs and on the command line. What was written
yesterday, perhaps by another version, shall show in Chinese today, so a message is recognised by
its text: the catalogue holds the templates of all messages (``{0} needed in {1}, {2} free``, read
from core's syntax trees by the test that keeps it complete), a message is matched against them,
and what stood in the holes goes into the translation.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cache, lru_cache
from string import Formatter

from core.language.translations import ENGLISH, catalog

#: A message within a message within a message; deeper is no sentence of ours.
_DEPTH = 4
#: Longer texts quote a log or a file.
_LONGEST = 4_000


@dataclass(frozen=True)
class _Template:
    """``pieces`` of literal text with a hole between each two."""

    pieces: tuple[str, ...]
    translation: str
    letters: int


def pieces_of(template: str) -> tuple[str, ...]:
    """The literal parts, unescaped, with a hole between each two."""
    pieces = [""]
    for literal, hole, _, _ in Formatter().parse(template):
        pieces[-1] += literal
        if hole is not None:
            pieces.append("")
    return tuple(pieces)


@cache
def _templates(language: str) -> tuple[dict[str, str], list[_Template]]:
    """Whole texts; and texts with holes, the ones with the most letters of ours first."""
    whole, holed = {}, []
    for message in catalog(language, "core"):
        if not message.id or not message.string:
            continue
        pieces = pieces_of(str(message.id))
        if len(pieces) == 1:
            whole[pieces[0]] = "".join(pieces_of(str(message.string)))
            continue
        letters = sum(char.isalpha() for piece in pieces for char in piece)
        holed.append(_Template(pieces, str(message.string), letters))
    holed.sort(key=lambda t: (-t.letters, len(t.pieces)))
    return whole, holed


def captured(pieces: tuple[str, ...], text: str) -> list[str] | None:
    """What stands in the holes of ``text``, or None. Linear, whatever the text is.

    Each piece is taken where it first occurs; if any way of filling the holes exists, this one
    does.
    """
    first, last = pieces[0], pieces[-1]
    end = len(text) - len(last)
    if not text.startswith(first) or not text.endswith(last) or end < len(first):
        return None
    found, at = [], len(first)
    for piece in pieces[1:-1]:
        start = text.find(piece, at, end)
        if start < 0:
            return None
        found.append(text[at:start])
        at = start + len(piece)
    return [*found, text[at:end]]


def translate_message(text: str, language: str) -> str:
    """``text``, a message or a word of core, in ``language``; unknown ones stay as they are."""
    if language == ENGLISH or len(text) > _LONGEST:
        return text
    return _translated(text, language, 0)


@lru_cache(maxsize=2_000)
def _translated(text: str, language: str, depth: int) -> str:
    whole, holed = _templates(language)
    if text in whole:
        return whole[text]
    if depth >= _DEPTH:
        return text
    parts = text.split("; ")
    if len(parts) > 1:
        told = [_translated(part, language, depth + 1) for part in parts]
        if all(map(operator.ne, told, parts)):
            return "；".join(told)
    for template in holed:
        values = captured(template.pieces, text)
        if values is None:
            continue
        inner = [_translated(value, language, depth + 1) for value in values]
        # "{0}: {1}" fits much that is not ours: it counts only if something inside is; "{0} is
        # {1}" only if all is.
        known = [a != b for a, b in zip(inner, values, strict=True)]
        if template.letters < 3 and not (all(known) if template.letters else any(known)):
            continue
        return template.translation.format(*inner)
    return text
