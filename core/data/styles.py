"""How different people write the same question. Only the fixed parts of a sentence are touched;
slots and parameters (``{{ ... }}``) stay as they are."""

from __future__ import annotations

import re
from collections.abc import Callable

_SLOT = re.compile(r"(\{\{.*?\}\}|\{%.*?%\})", re.DOTALL)
_WORD = re.compile(r"[A-Za-z]{5,}")
_CJK = re.compile(r"[\u4e00-\u9fff]")

_BEFORE: dict[str, dict[str, tuple[str, ...]]] = {
    "polite": {
        "en": ("Excuse me. {}", "{} Thank you.", "If you don't mind me asking: {}"),
        "zh": ("您好，{}", "请问，{}", "麻烦您，{}"),
    },
    "skeptical": {
        "en": ("Be straight with me. {}", "Hmm. {}", "Seriously, one more time: {}"),
        "zh": ("说实话，{}", "我不太信，{}", "认真点，{}"),
    },
    "child": {
        "en": ("Hey hey! {}", "Um. {}", "{} Pretty please?"),
        "zh": ("嘿嘿，{}", "那个，{}", "哇，{}"),
    },
    "code_switch": {"en": ("Hola! {}", "{} Merci!"), "zh": ("Hello，{}", "{} Thanks!")},
}
#: How many versions ``apply`` knows of each style.
VARIANTS = {"plain": 1, "terse": 1, "typo": 3, **dict.fromkeys(_BEFORE, 3), "code_switch": 2}


def apply(style: str, text: str, locale: str, variant: int = 0) -> str:
    """Write ``text`` in a style; ``variant`` chooses among VARIANTS[style] versions.

    ``plain`` returns the text. ``terse`` drops capitals and the last mark, ``typo`` swaps two
    letters inside a word; the others put a phrase before or after.
    """
    if style in _BEFORE:
        frames = _BEFORE[style].get(locale) or _BEFORE[style]["en"]
        # str.replace, not format: the sentence has braces of its own.
        return frames[variant % len(frames)].replace("{}", text)
    if style == "terse":
        return _literal(text, lambda part: part.lower()).rstrip(".?!。？！") or text
    if style == "typo":
        return _typo(text, variant)
    return text


def _literal(text: str, change: Callable[[str], str]) -> str:
    parts = _SLOT.split(text)
    return "".join(p if i % 2 else change(p) for i, p in enumerate(parts))


def _typo(text: str, variant: int) -> str:
    """Swap two inner letters of the ``variant``-th long word, as fast typing does."""
    spots = [m for i, part in _offsets(text) if not i % 2 for m in part]
    if not spots:
        return text
    start, end = spots[variant % len(spots)]
    at = start + 1 + variant % (end - start - 3)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _offsets(text: str) -> list[tuple[int, list[tuple[int, int]]]]:
    found, at = [], 0
    for i, part in enumerate(_SLOT.split(text)):
        found.append((i, [(at + m.start(), at + m.end()) for m in _WORD.finditer(part)]))
        at += len(part)
    return found
