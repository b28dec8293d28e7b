"""The role card of the simulated user, and how the user model sees the talk."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from core.conversation import Message
from core.data.ultrachat.openings import Opening

#: Part of every cache key: raise it when a prompt below changes.
PROMPT_VERSION = 2

STYLES: dict[str, dict[str, str]] = {
    "en": {
        "terse": "You write very short messages and leave out every word you can.",
        "curious": "You always want to know one more thing.",
        "doubtful": "You doubt what you are told and ask for reasons.",
        "practical": "You want to use the answer today and ask for concrete steps.",
        "beginner": "You know nothing about the matter and ask for simple words.",
        "playful": "You like odd comparisons and small jokes.",
    },
    "zh": {
        "terse": "你的话很短，能省的字都省掉。",
        "curious": "你总想再多知道一点。",
        "doubtful": "你不太相信对方的话，会追问理由。",
        "practical": "你今天就想用上答案，喜欢问具体步骤。",
        "beginner": "你完全不懂，希望对方用简单的词。",
    },
}

_CARD = {
    "en": "You play a person who talks with a chat assistant about: {topic}. {style} Write only "
    "your next message to the assistant, a question or a request of at most 25 words. Do not "
    "answer questions yourself, do not offer help, do not say thanks.",
    "zh": "你扮演一个正在和聊天助手谈“{topic}”的普通人。{style}只写你要发给助手的下一句话，"
    "可以是问题或要求，不超过40个字。不要自己回答，不要主动提供帮助，不要道谢。",
}
_TRANSCRIPT = {
    "en": "This is a chat between a person and an assistant about: {topic}.\n\n{talk}\n\n"
    "Write the one short question or request that the person sends next. Write only that.",
    "zh": "这是一个人和助手关于“{topic}”的聊天。\n\n{talk}\n\n"
    "写出这个人接下来发的一句简短的问题或要求。只写这一句。",
}
_SPEAKERS = {"en": ("Person", "Assistant"), "zh": ("某人", "助手")}
_LABEL = re.compile(r"^\W*(person|user|question|request|某人|用户|问题)\s*[:：]\s*", re.IGNORECASE)
_START = {
    "en": "(The conversation begins. Write your first message.)",
    "zh": "（对话开始。写出你的第一句话。）",
}


def style_of(seed: int, index: int, locale: str) -> str:
    """The manner of the ``index``-th user."""
    return random.Random(f"style/{seed}/{locale}/{index}").choice(sorted(STYLES[locale]))


def swapped_view(
    history: Sequence[Message], opening: Opening, style: str, locale: str
) -> list[Message]:
    """The conversation as the user model must see it to write the next *user* line.

    Without the card a model that sees the history drifts into the assistant's role (UltraChat,
    section 4.4); with swapped roles its next turn is the person's. The first line of a chat must
    be a user turn in many templates, hence the stage direction.
    """
    card = _fill(_CARD[locale], opening, style, locale)
    view: list[Message] = [
        {"role": "system", "content": card},
        {"role": "user", "content": _START[locale]},
    ]
    for message in history:
        if message["role"] == "user":
            view.append({"role": "assistant", "content": message["content"]})
        elif message["role"] == "assistant":
            view.append({"role": "user", "content": message["content"]})
    return view


def transcript_view(
    history: Sequence[Message], opening: Opening, style: str, locale: str
) -> list[Message]:
    """The conversation as a text to go on with, in one user turn (Baize's second version).

    For small models, which cannot keep a role that their chat training never had.
    """
    person, helper = _SPEAKERS[locale]
    talk = "\n".join(
        f"{person if m['role'] == 'user' else helper}: {m['content']}"
        for m in history
        if m["role"] != "system"
    )
    text = _fill(_TRANSCRIPT[locale], opening, style, locale)
    return [{"role": "user", "content": text.replace("{talk}", talk)}]


def _fill(card: str, opening: Opening, style: str, locale: str) -> str:
    return card.replace("{topic}", opening.topic).replace("{style}", STYLES[locale][style])


def clean_line(text: str) -> str:
    """The message itself: the first line, without a speaker's label and quotation marks."""
    lines = text.strip().splitlines()
    line = _LABEL.sub("", lines[0].strip()) if lines else ""
    pairs = {'"': '"', "“": "”", "「": "」", "'": "'"}
    if len(line) > 1 and pairs.get(line[0]) == line[-1]:
        line = line[1:-1].strip()
    return line
