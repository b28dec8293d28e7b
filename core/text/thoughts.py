"""What a reasoning model thinks before it answers, apart from the answer."""

from __future__ import annotations

import re

OPEN, CLOSE = "<think>", "</think>"
_BLOCK = re.compile(r"\s*<think>(?P<thoughts>.*?)(?:</think>(?P<answer>.*)|\Z)", re.DOTALL)


def split(text: str) -> tuple[str, str]:
    """(thoughts, answer) of a reply. Without a block of thoughts at its beginning, all is answer.

    A block that is not closed is all thoughts: the reply ended before the answer. One whose
    opening stands in the prompt (templates that begin it themselves) is found by its end.
    """
    match = _BLOCK.fullmatch(text)
    if match:
        return match["thoughts"].strip(), (match["answer"] or "").strip("\n")
    if CLOSE in text and OPEN not in text:
        thoughts, _, answer = text.partition(CLOSE)
        return thoughts.strip(), answer.strip("\n")
    return "", text


def answer(text: str) -> str:
    """The reply without its thoughts."""
    return split(text)[1]
