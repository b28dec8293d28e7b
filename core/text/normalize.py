"""Text as the scorer sees it: spelling differences removed, words and clauses found.

Everything here is deterministic and knows Latin and CJK scripts. Traditional and simplified
Chinese are not folded into each other: give both spellings as aliases.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

#: Han, kana, hangul and Thai: scripts that do not put spaces between words.
_UNSPACED = re.compile(
    r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]"
)
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_KANA_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_SEAM = re.compile(
    rf"(?<={_UNSPACED.pattern})(?=[^\W_])(?!{_UNSPACED.pattern})"
    rf"|(?<=[^\W_])(?<!{_UNSPACED.pattern})(?={_UNSPACED.pattern})"
)
_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "＇": "'", "`": "'"})
#: A full stop ends a clause only before a space or the end: "GPT-3.5" stays whole.
_CLAUSE = re.compile(
    r"[。！？!?，,；;\n：]+|[.:](?=\s|$)|\s[-–—]+\s|——"
    r"|(?=\b(?:but|however|while|whereas|because|although)\b)|(?=但是?|而是|不过|因为)",
)


def fold(text: str) -> str:
    """NFKC, case-folded, with straight apostrophes; punctuation and spaces kept."""
    return unicodedata.normalize("NFKC", text.translate(_QUOTES)).casefold().translate(_QUOTES)


@lru_cache(maxsize=8192)
def spaced(text: str) -> str:
    """Folded words with one space between, also where Latin and CJK touch; no punctuation."""
    folded = fold(text)
    plain = "".join(" " if unicodedata.category(c)[0] in "PSZC" else c for c in folded)
    return " ".join(_SEAM.sub(" ", plain).split())


def compact(text: str) -> str:
    """Folded, without punctuation and spaces: equal wordings become equal."""
    return "".join(c for c in fold(text) if unicodedata.category(c)[0] not in "PSZC")


def is_unspaced(text: str) -> bool:
    """Whether the text has a character of a script without spaces between words."""
    return bool(_UNSPACED.search(text))


def contains(text: str, alias: str) -> bool:
    """Whether a name occurs in a text: CJK as a substring, other scripts as whole words."""
    if is_unspaced(alias):
        needle = compact(alias)
        return bool(needle) and needle in compact(text)
    needle = spaced(alias)
    return bool(needle) and f" {needle} " in f" {spaced(text)} "


def is_matchable(alias: str) -> bool:
    """False for names that would match by accident: under 3 Latin characters, under 2 CJK."""
    return len(compact(alias)) >= (2 if is_unspaced(alias) else 3)


def words(text: str) -> list[str]:
    """Words, with every CJK character a word of its own."""
    out: list[str] = []
    for part in spaced(text).split():
        out += list(part) if _UNSPACED.match(part) else [part]
    return out


def clauses(text: str) -> list[str]:
    """Folded clauses, cut at punctuation and at contrasting conjunctions; empty ones dropped."""
    return [c for part in _CLAUSE.split(fold(text)) if (c := part.strip(" \t\"'*_()[]"))]


def sentences(text: str) -> list[str]:
    """Sentences as written, empty ones dropped."""
    parts = re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n+", text)
    return [s for part in parts if (s := part.strip())]


def repeated_share(text: str, n: int = 4) -> float:
    """Share of n-grams of words that occurred before: 0 for fresh text, near 1 for a loop."""
    tokens = words(text)
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def script(text: str) -> str:
    """``zh``, ``other_cjk``, ``latin`` or ``''``, by the majority of the letters."""
    han, kana, latin = (len(p.findall(text)) for p in (_HAN, _KANA_HANGUL, _LATIN))
    # A Han character says about as much as three Latin letters.
    if kana > 0.2 * (han + kana) and 3 * (han + kana) > latin:
        return "other_cjk"
    if 3 * han > latin:
        return "zh"
    return "latin" if latin else ""


def locale_of(text: str) -> str:
    """``zh``, ``ja``, ``ko``, or ``en`` for all of Latin script, by the script of most letters.

    Scripts, because language guessers are wrong on texts of a few words.
    """
    found = script(text)
    if found == "other_cjk":
        return "ko" if re.search(r"[\uac00-\ud7af]", text) else "ja"
    return "zh" if found == "zh" else "en"


def is_language(text: str, locale: str) -> bool:
    """Whether a reply's script fits the locale. Latin-script languages are not told apart."""
    found = script(text)
    expected = {"zh": "zh", "ja": "other_cjk", "ko": "other_cjk"}.get(locale, "latin")
    return not found or found == expected
