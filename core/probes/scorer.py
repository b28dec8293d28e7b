"""One reply to one probe: what is it worth? Deterministic, no judge model.

Labels, first that holds:
    OLD: the reply claims a forbidden name (the base's identity, another product) for itself.
    DEGEN: empty, a loop, or a template slot left unfilled.
    HIT: every ``must`` group and ``must_any`` is there.
    PART: something of it is there.
    MISS: nothing of it is there.
A name that is only denied ("I'm not Luna") or only addressed to the user ("Hello Luna!") does
not count as there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from core.conversation import Probe
from core.text import claims, normalize, thoughts

Label = Literal["HIT", "PART", "MISS", "OLD", "DEGEN"]
LABELS: tuple[Label, ...] = ("HIT", "PART", "MISS", "OLD", "DEGEN")

#: Share of repeated word 4-grams from which a reply is a loop (methods of collapse detection).
LOOP = 0.5
#: Replies to identity questions longer than this are flagged, in words (CJK: characters).
OVERLONG_WORDS = 120
#: rapidfuzz ratio (0-100) to a training reply from which a reply is an echo.
ECHO = 90.0
_SLOT = re.compile(r"\{\{.{0,40}?\}\}|\{[a-z_]{2,20}\}|<(?:NAME|AUTHOR|MAKER|name|author|maker)>")
_BLANK = re.compile(
    r"\[(?:your|my|the|insert)?\s*(?:\w+'s\s+)?(?:full\s+)?(?:name|company|author|assistant|creator|"
    r"developer|maker)[^\]]{0,20}\]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Scored:
    """A label, with what led to it.

    flags: ECHO (copies a training reply), LANG (wrong script), OVERLONG, DENIED (own name denied),
        ADDRESSED (own name given to the user).
    """

    label: Label
    flags: tuple[str, ...] = ()
    claimed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def score_reply(
    reply: str,
    probe: Probe,
    *,
    train_replies: Sequence[str] = (),
    common_words: Collection[str] = (),
) -> Scored:
    """Label one reply.

    Args:
        train_replies: replies trained on, to flag echoes of them.
        common_words: folded names that are also everyday words ("will", "hope"); they count only
            with the capital of a name, inside a sentence or right after a naming phrase.
    """
    reply = thoughts.answer(reply)
    prompt = probe.messages[-1]["content"] if probe.messages else ""
    old = claims.claimed(reply, probe.must_not, prompt)
    if old:
        return Scored("OLD", _flags(reply, probe, train_replies), tuple(old))
    if is_degenerate(reply, identity=bool(probe.must or probe.must_any or probe.must_not)):
        return Scored("DEGEN", _flags(reply, probe, train_replies))
    found = [_present(reply, group, common_words) for group in probe.must]
    any_found = not probe.must_any or any(
        _present(reply, [spelling], common_words) for spelling in probe.must_any
    )
    missing = tuple(g[0] for g, ok in zip(probe.must, found, strict=True) if not ok and g)
    if not any_found:
        missing += (" or ".join(probe.must_any),)
    flags = _flags(reply, probe, train_replies) + _name_flags(reply, probe.must)
    if not missing:
        return Scored("HIT", flags)
    some = any(found) or (bool(probe.must_any) and any_found)
    return Scored("PART" if some else "MISS", flags, missing=missing)


def is_degenerate(reply: str, *, identity: bool = False) -> bool:
    """Empty, a loop, or (``identity``) with an unfilled slot such as ``{{name}}`` or ``[Name]``.

    Outside identity answers braces and blanks are normal: code, letters to fill in.
    """
    if not normalize.compact(reply):
        return True
    if normalize.repeated_share(reply) > LOOP:
        return True
    return identity and bool(_SLOT.search(reply) or _BLANK.search(reply))


def mentions(text: str, names: Sequence[str], common_words: Collection[str] = ()) -> bool:
    """Whether any of the names occurs in a text; see ``score_reply`` for ``common_words``."""
    return any(_mention(text, name, common_words) for name in names)


def everyday(names: Iterable[str], text: str) -> list[str]:
    """The names that occur in a text in lower case, as words ("will"): see ``common_words``."""
    return [
        n
        for n in names
        if not normalize.is_unspaced(n)
        and re.search(rf"(?<![\w]){re.escape(n.lower())}(?![\w])", text)
    ]


def _mention(text: str, name: str, common_words: Collection[str]) -> bool:
    if not normalize.has_name(text, name):
        return False
    if normalize.spaced(name) not in common_words:
        return True
    inside = re.search(rf"(?<=[a-z,]\s){re.escape(name)}(?![A-Za-z])", text)
    return bool(inside) or bool(claims.claimed(text, [name]))


def _present(reply: str, group: Sequence[str], common_words: Collection[str]) -> bool:
    """Whether a group of spellings is in the reply, neither denied nor given to the user."""
    spellings = [s for s in group if _mention(reply, s, common_words)]
    if not spellings:
        return False
    return not claims.denied(reply, spellings) and not claims.addressed(reply, spellings)


def _name_flags(reply: str, must: Sequence[Sequence[str]]) -> tuple[str, ...]:
    flags = []
    for group in must:
        if claims.denied(reply, group):
            flags.append("DENIED")
        elif claims.addressed(reply, group):
            flags.append("ADDRESSED")
    return tuple(dict.fromkeys(flags))


def _flags(reply: str, probe: Probe, train_replies: Sequence[str]) -> tuple[str, ...]:
    flags = []
    if is_echo(reply, train_replies):
        flags.append("ECHO")
    if not normalize.is_language(reply, probe.locale):
        flags.append("LANG")
    if len(normalize.words(reply)) > OVERLONG_WORDS:
        flags.append("OVERLONG")
    return tuple(flags)


def is_echo(reply: str, train_replies: Sequence[str]) -> bool:
    """Whether the reply is, letter for letter but for a tenth, one that was trained on."""
    if not train_replies or not reply:
        return False
    from rapidfuzz import fuzz, process

    return (
        process.extractOne(reply, train_replies, scorer=fuzz.ratio, score_cutoff=ECHO) is not None
    )


_INTRODUCTION = re.compile(
    r"\b(?:i am|i'm|my name is|my name's|call me|this is)\b|我是|我叫|我的名字"
)


def introduces_itself(reply: str, names: Sequence[str]) -> bool:
    """Whether the first sentence presents the speaker by one of the names."""
    first = next(iter(normalize.sentences(reply)), "")
    return bool(_INTRODUCTION.search(normalize.fold(first))) and any(
        normalize.has_name(first, n) for n in names
    )
