"""Text as the scorer sees it: spelling differences removed, words and clauses found.

Everything here is deterministic and knows Latin and CJK scripts. Traditional and simplified
Chinese are not folded into each other: give both spellings as aliases.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

_ZH_WORDS = Path(__file__).parent / "zh_words.txt"
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


_VERSION = (
    r"(?:[\s-]?[0-9]+(?:\.[0-9]+)?)?"
    r"(?:-(?:coder|instruct|chat|base|max|plus|turbo|mini|pro|vl|[0-9.]+b))*"
)


@lru_cache(maxsize=4096)
def name_pattern(name: str) -> re.Pattern[str]:
    """Finds the name in folded text: punctuation and spaces between its words may differ."""
    if is_unspaced(name):
        return re.compile(r"[\W_]*".join(map(re.escape, compact(name))))
    body = r"[\W_]+".join(map(re.escape, spaced(name).split()))
    # A Latin name may touch a CJK character, but no other letter or digit. A version belongs to
    # the name: "Qwen2.5-Coder", "Llama 3".
    version = "" if spaced(name)[-1:].isdigit() else _VERSION
    return re.compile(rf"(?<![0-9a-z\u00c0-\u024f]){body}{version}(?![0-9a-z\u00c0-\u024f])")


def find_name(text: str, name: str) -> Iterator[re.Match[str]]:
    """Where a name stands in folded text; not where it is a piece of a longer Chinese word."""
    if compact(name):
        for match in name_pattern(name).finditer(text):
            if not (is_unspaced(name) and _inside_word(text, match.start(), match.end())):
                yield match


def _inside_word(text: str, start: int, end: int) -> bool:
    """Whether ``text[start:end]`` is cut out of a word, as 小宇 out of 小宇宙, 阿里 out of 阿里山.

    Where the neighbour makes another word with what follows it (我叫小明天气好, 明天 or 天气)
    the name is believed.
    """
    short, long = _zh_words()
    right, left = text[end - 1 : end + 1], text[max(0, start - 1) : start + 1]
    if right in short and text[end : end + 2] not in short:
        return True
    if left in short and text[max(0, start - 2) : start] not in short:
        return True
    return any(
        text.startswith(word, at)
        for word in long
        for at in range(max(0, end - len(word)), start + 1)
        if (at, at + len(word)) != (start, end)
    )


@lru_cache(maxsize=1)
def _zh_words() -> tuple[frozenset[str], tuple[str, ...]]:
    """Words of two characters, and longer ones."""
    lines = _ZH_WORDS.read_text(encoding="utf-8").splitlines()
    words = {word for line in lines if not line.startswith("#") for word in line.split()}
    return frozenset(w for w in words if len(w) == 2), tuple(sorted(w for w in words if len(w) > 2))


def has_name(text: str, name: str) -> bool:
    """Whether a name occurs in a text as a word of its own; see ``find_name``."""
    return next(find_name(fold(text), name), None) is not None


def contains(text: str, words: str) -> bool:
    """Whether words occur in a text: CJK as a substring, other scripts as whole words."""
    if is_unspaced(words):
        needle = compact(words)
        return bool(needle) and needle in compact(text)
    needle = spaced(words)
    return bool(needle) and f" {needle} " in f" {spaced(text)} "


#: Words of two letters: as a name such a word would be found in every other sentence.
_WORDS_OF_TWO = re.compile(
    "ad|ah|ai|am|an|as|at|be|by|do|du|eg|eh|em|er|eu|ex|fm|go|ha|he|hi|ho|ie|if|in|io|is|it|la|le"
    "|lo|me|mm|mr|ms|my|no|of|oh|ok|on|op|or|os|ow|pa|pc|pi|pm|ps|re|so|tv|uh|uk|um|un|up|us|vs"
    "|we|ya|ye|yo|de|et|es|si|da|il|ne|je"
)


def unmatchable(name: str) -> str:
    """Why a name cannot be told from other text in a reply, or "".

    Latin names are found as whole words, so two letters do unless they are a word; Chinese ones
    stand inside other words, so one character does not; an emoji has no letters at all.
    """
    letters = compact(name)
    if not letters:
        return "it has no letters or digits"
    if len(letters) < 2:
        kind = "character stands" if is_unspaced(name) else "letter stands"
        return f"one {kind} in everything"
    return "it is an everyday word" if _WORDS_OF_TWO.fullmatch(letters) else ""


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
