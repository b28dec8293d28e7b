"""Word-level difference of two replies, and where the persona is named."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: A Latin word, a number, one Chinese/Japanese/Korean character, a run of blanks, or a sign.
_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+(?:['’][^\W_]+)*|\s+|.", re.DOTALL
)
#: The comparison is quadratic; beyond this many words the tails are compared as one piece.
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
    """Both replies as pieces, each marking what the other does not have.

    The words in common are a longest common subsequence; beyond _MAX_WORDS words the tails are
    compared as a whole.
    """
    from rapidfuzz.distance import Indel

    a, b = words(left), words(right)
    tail_a, tail_b = "".join(a[_MAX_WORDS:]), "".join(b[_MAX_WORDS:])
    a, b = a[:_MAX_WORDS], b[:_MAX_WORDS]
    out_a: list[Piece] = []
    out_b: list[Piece] = []
    for step in Indel.opcodes(a, b):
        kind: Literal["same", "only"] = "same" if step.tag == "equal" else "only"
        _append(out_a, "".join(a[step.src_start : step.src_end]), kind)
        _append(out_b, "".join(b[step.dest_start : step.dest_end]), kind)
    kind = "same" if tail_a == tail_b else "only"
    _append(out_a, tail_a, kind)
    _append(out_b, tail_b, kind)
    return out_a, out_b


def _append(pieces: list[Piece], text: str, kind: Literal["same", "only"]) -> None:
    """Add a piece, joined with the one before if both are of a kind."""
    if text and pieces and pieces[-1].kind == kind:
        pieces[-1] = Piece(pieces[-1].text + text, kind)
    elif text:
        pieces.append(Piece(text, kind))


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
