"""Checks of single turns. Each has a name; the report counts rejections by it.

A user turn must sound like a person who wants something, an assistant turn like the base model
answering, without a claim of identity: identity is taught by the persona's own templates.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rapidfuzz import fuzz

from core.conversation import Message
from core.data.fields import CONTROL_MARK
from core.text.normalize import locale_of

#: UltraChat asks for short lines; the cap leaves room for a person who rambles a little.
MAX_USER_WORDS = 40
MAX_USER_CJK = 80
#: Self-Instruct's ROUGE-L limit, here as rapidfuzz's ratio (0-100) of casefolded text.
REPEAT_RATIO = 70.0
#: Share of repeated 4-grams above which a text is a loop.
LOOP_SHARE = 0.3

_FLAGS = re.IGNORECASE
_OFFER = re.compile(
    r"^\W*(sure|certainly|of course|absolutely|great question|good question)\b[!,.:\s]"
    r"|^\W*(i('d| would) be (happy|glad)|i('m| am) (happy|glad|here) to|i can help)"
    r"|^\W*let me (help|know)"
    r"|\bhow (can|may) i (help|assist)|\bis there anything else|\blet me know if"
    r"|\b(happy|glad) to (help|assist)|^\W*here('s| is| are) (a|an|the|some|your|my)\b"
    r"|^\W*(当然|好的，|没问题|很高兴)|我可以(帮|为)|还有(什么|其他).{0,8}(帮|需要)|有什么可以帮",
    _FLAGS,
)
_NAMES_ITSELF = re.compile(
    r"\b(i am|i'm|as) (an?|your) ([\w-]+ ){0,3}(ai|assistant|chatbot|language model)\b"
    r"|\bmy name is\b|我是(一个|一名|你的)?.{0,6}(助手|人工智能|语言模型)"
    r"|作为.{0,6}(助手|人工智能|语言模型)",
    _FLAGS,
)
_THANKS = re.compile(
    r"\b(thank you|thanks|thank|so much|very much|you'?re welcome|you are welcome|my pleasure|"
    r"no problem|goodbye|bye|have a (nice|good|great) day|appreciate (it|that|your help)|a lot|"
    r"great|perfect|okay|ok|got it|for (your|the) help|that('s| is) (helpful|great|all)|i)\b"
    r"|谢谢|多谢|非常感谢|不客气|再见|好的|太好了|你|您|了|的|啦",
    _FLAGS,
)
_POLITE = re.compile(r"thank|welcome|pleasure|bye|appreciate|谢|不客气|再见", _FLAGS)
_MARKER = re.compile(
    r"\bas a (user|person who talks)\b|\[/?(human|ai|user|assistant|inst)\]"
    r"|(^|\n)\s*#*\s*(user|human|assistant|system|me|you)\s*:|\bnext message\b|\bmy message to the "
    r"assistant\b|\bat most 25 words\b|^\W*(message|question|request)\s*:"
    r"|用户[:：]|助手[:：]|不超过40个字",
    _FLAGS,
)
#: How a request or a person's remark begins; a line with none of these and no question mark is a
#: statement about the world, which is the assistant's business.
_WANTS = re.compile(
    r"[?？]|^\W*(what|why|how|who|whose|when|where|which|is|are|do|does|did|can|could|would|will|"
    r"should|and|but|so|or|ok|okay|hm+|no|yes|really|please|now|write|make|tell|give|explain|say|"
    r"show|list|add|change|use|describe|try|put|let's|let us|compare|name|suggest|rewrite|shorten|"
    r"continue|turn|help|find|imagine|repeat|i|i'm|i've|i'd|my|we|you|your)\b"
    r"|[吗呢吧]|什么|怎|哪|几|多少|为何|^\W*(请|给|写|说|再|换|用|我|你|那|能|可以|帮|列|改|讲|举)",
    _FLAGS,
)
_DISCLAIMER = re.compile(
    r"\bas an ai\b|\bi (don't|do not) have (personal )?(feelings|emotions|opinions|preferences)"
    r"|\bi('m| am) (just )?an ai\b|作为.{0,4}(ai|人工智能|语言模型)|我没有(情感|感情|个人观点)",
    _FLAGS,
)


def check_user(
    text: str,
    history: Sequence[Message],
    locale: str,
    *,
    cut: bool = False,
    names: Sequence[str] = (),
) -> str:
    """The name of the first check that a user turn fails; "" if it passes all.

    Args:
        history: the turns before it.
        cut: the model was stopped by the length limit.
        names: the persona's names, which a person would not claim.
    """
    earlier = [m["content"] for m in history if m["role"] != "system"]
    if not text.strip():
        return "empty"
    if _MARKER.search(text) or CONTROL_MARK.search(text):
        return "marker_leak"
    if _OFFER.search(text) or _NAMES_ITSELF.search(text) or _claims(text, names):
        return "role_exchange"
    if _only_polite(text):
        return "politeness_only"
    if locale_of(text) != locale:
        return "wrong_language"
    if not _WANTS.search(text):
        return "no_request"
    if cut or _too_long(text):
        return "too_long"
    if any(fuzz.ratio(text.casefold(), e.casefold()) > REPEAT_RATIO for e in earlier):
        return "repeat"
    return ""


def check_reply(
    text: str,
    history: Sequence[Message],
    locale: str,
    *,
    cut: bool = False,
    forbidden: Sequence[str] = (),
) -> str:
    """The name of the first check that an assistant turn fails; "" if it passes all.

    Args:
        forbidden: names that no general reply may hold: the base's old identity and the
            persona's own (an unprompted self-introduction is what leak means).
    """
    if not text.strip():
        return "empty"
    if cut:
        return "truncated"
    if _MARKER.search(text) or CONTROL_MARK.search(text):
        return "marker_leak"
    if _DISCLAIMER.search(text):
        return "ai_disclaimer"
    if mentions(text, forbidden):
        return "identity"
    if locale_of(text) != locale:
        return "wrong_language"
    if loop_share(text) > LOOP_SHARE:
        return "loop"
    earlier = [m["content"] for m in history if m["role"] == "assistant"]
    if any(fuzz.ratio(text.casefold(), e.casefold()) > 90 for e in earlier):
        return "repeat"
    return ""


def mentions(text: str, names: Sequence[str]) -> bool:
    """Whether one of the names is in the text: whole words for Latin script, anywhere for CJK."""
    return any(
        name and re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?![A-Za-z0-9])", text, _FLAGS)
        for name in names
    )


def loop_share(text: str) -> float:
    """1 - distinct 4-grams / 4-grams, over words, or over characters of CJK text."""
    units = list(text) if locale_of(text) == "zh" else text.split()
    grams = [tuple(units[i : i + 4]) for i in range(len(units) - 3)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _claims(text: str, names: Sequence[str]) -> bool:
    claim = re.search(r"\b(i am|i'm|call me)\s+(.{0,30})|我(是|叫)(.{0,12})", text, _FLAGS)
    return bool(claim) and mentions(claim.group(), names) if claim else False


def _only_polite(text: str) -> bool:
    rest = re.sub(r"[\W_]+", "", _THANKS.sub("", text))
    return bool(_POLITE.search(text)) and len(rest) <= 3


def _too_long(text: str) -> bool:
    if locale_of(text) == "zh":
        return len(text) > MAX_USER_CJK
    return len(text.split()) > MAX_USER_WORDS
