"""The role card of the simulated user, and how the user model sees the talk (roles swapped)."""

from __future__ import annotations

import random
from collections.abc import Sequence

from core.conversation import Message
from core.data.ultrachat.openings import Opening

#: Part of every cache key: raise it when a prompt below changes.
PROMPT_VERSION = 1

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
_START = {
    "en": "(The conversation begins. Write your first message.)",
    "zh": "（对话开始。写出你的第一句话。）",
}


def style_of(seed: int, index: int, locale: str) -> str:
    """The manner of the ``index``-th user."""
    return random.Random(f"style/{seed}/{locale}/{index}").choice(sorted(STYLES[locale]))


def user_view(
    history: Sequence[Message], opening: Opening, style: str, locale: str
) -> list[Message]:
    """The conversation as the user model must see it to write the next *user* line.

    Without the card a model that sees the history drifts into the assistant's role (UltraChat,
    section 4.4); with swapped roles its next turn is the person's. The first line of a chat must
    be a user turn in many templates, hence the stage direction.
    """
    card = _CARD[locale].replace("{topic}", opening.topic).replace("{style}", STYLES[locale][style])
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
