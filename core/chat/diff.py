"""Word-level difference of two replies, and where the persona is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

#: A Latin word, a number, one Chinese/Japanese/Korean character, a run of blanks, or a sign.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+(?:['’][^\W_]+)*|\s+|.", re.DOTALL
)
#: difflib is quadratic; beyond this many words the tails are compared as one piece.
_MAX_WORDS = 4_000


@dataclass(frozen=True)
class Piece:
    """A run of words: in both replies, or only in this one."""

    text: str
    kind: Literal["same", "only"]


def words(text: str) -> list[str]:
    """Words, blanks and signs; joined they give the text again."""
    return _WORD.findall(text)


def compare(left: str, right: str) -> tuple[list[Piece], list[Piece]]:
    """Both replies as pieces, each marking what the other does not have."""
    a, b = words(left), words(right)
    tail_a, tail_b = "".join(a[_MAX_WORDS:]), "".join(b[_MAX_WORDS:])
    a, b = a[:_MAX_WORDS], b[:_MAX_WORDS]
    out_a: list[Piece] = []
    out_b: list[Piece] = []
    for tag, a0, a1, b0, b1 in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        kind: Literal["same", "only"] = "same" if tag == "equal" else "only"
        if a1 > a0:
            out_a.append(Piece("".join(a[a0:a1]), kind))
        if b1 > b0:
            out_b.append(Piece("".join(b[b0:b1]), kind))
    kind = "same" if tail_a == tail_b else "only"
    out_a += [Piece(tail_a, kind)] if tail_a else []
    out_b += [Piece(tail_b, kind)] if tail_b else []
    return out_a, out_b


def similarity(left: str, right: str) -> float:
    """0 to 1: normalised Indel similarity of the words (2 x common / all)."""
    from rapidfuzz.distance import Indel

    return float(Indel.normalized_similarity(words(left), words(right)))


def mentions(text: str, names: Sequence[str]) -> list[tuple[int, int]]:
    """Where one of the names stands: (start, end), in order, not overlapping.

    Whole words only for Latin names, so that "Al" is not found in "also"; longest name first.
    """
    wanted = sorted({n.strip() for n in names if n.strip()}, key=len, reverse=True)
    if not wanted:
        return []
    pattern = "|".join(
        (r"\b" if n[0].isascii() and n[0].isalnum() else "")
        + re.escape(n)
        + (r"\b" if n[-1].isascii() and n[-1].isalnum() else "")
        for n in wanted
    )
    return [m.span() for m in re.finditer(pattern, text, re.IGNORECASE)]
