"""Whether a system turn gives the model an identity: a name of its own, or a maker."""

from __future__ import annotations

import re

_ENGLISH = re.compile(
    r"\b(?:named|called)\s+[\"'“]?[A-Z]"
    r"|\b(?:created|developed|trained|built|made|designed|produced)\s+(?:and \w+ )?by\b"
    r"|\b(?:you are|you're|i am|i'm|your name is|my name is)\s+[\"'“]?"
    r"(?!(?:an?|the|my|your|our|AI|Assistant)\b)[A-Z][\w.\-]+",
    re.IGNORECASE,
)
_CAPITAL = re.compile(r"[A-Z]")
_CHINESE = re.compile(
    r"由.{1,30}?(?:开发|创造|创建|训练|研发|打造|推出|提供)|(?:名叫|名为|叫做|我叫|你叫|名字是)"
    r"|(?:你|我)是(?!一|个|位|名|人工智能|AI|智能|助手|专业|乐于)[\w一-鿿]{2,}"
)


def identity_in(text: str) -> str:
    """The words that give an identity ('' if there are none).

    ``You are a helpful assistant.`` gives none; ``You are Qwen, created by Alibaba Cloud.`` and
    ``你是通义千问，由阿里云开发`` do.
    """
    for match in _ENGLISH.finditer(text):
        found = match[0]
        # Without a capital it is no name: "you are helpful", "called upon".
        if re.search(r"\bby$", found) or _CAPITAL.search(found.split()[-1].lstrip("\"'“")):
            return text[match.start() : match.end() + 40].strip()
    chinese = _CHINESE.search(text)
    return text[chinese.start() : chinese.end() + 20].strip() if chinese else ""
