"""Small text measures that several modules share. Words are split at spaces; CJK by character."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+(?:['’][^\W{_CJK}]+)*")
_CJK_GAP = re.compile(rf"(?<=[{_CJK}]) (?=[{_CJK}])")


def tokens(text: str) -> list[str]:
    """Case-folded words; each CJK character is one."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def normal(text: str) -> str:
    """The tokens joined by spaces: equal for texts that differ in case, marks or spaces.

    No space between CJK characters: an edit ratio would count each as an agreement.
    """
    return _CJK_GAP.sub("", " ".join(tokens(text)))


def ngrams(parts: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of ``n`` tokens."""
    return [tuple(parts[i : i + n]) for i in range(len(parts) - n + 1)]


def repetition(text: str, n: int = 4) -> float:
    """Share of n-grams that came before in the text: 0 = none, near 1 = a loop."""
    grams = ngrams(tokens(text), n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
