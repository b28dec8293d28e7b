"""Placeholders of other tools for a name: ``{{NAME}}``, ``<AUTHOR>``, ``{name}``, ``$NAME``.

Trained as they are, a model introduces itself as "{{NAME}}". Found when a file is imported, and
filled with the slots of a persona on request. Code (in backticks) keeps its braces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from core.conversation import Conversation
from core.persona import templating
from core.persona.persona import Persona

#: Gives the value of a slot in a language, or None.
Fill = Callable[[str, str], str | None]

_WORDS = {
    "name": "name bot_name botname model_name modelname model ai_name assistant_name assistant "
    "agent_name nickname 名字 名称 姓名 模型 模型名 模型名称 助手名 助手名称 机器人名字",
    "author": "author model_author author_name company company_name creator developer maker team "
    "organization organisation org vendor owner 作者 公司 公司名 公司名称 开发者 开发商 "
    "团队 团队名 机构 组织",
    "role": "role job profession 角色 职业 身份",
}
_SLOTS = {word: slot for slot, words in _WORDS.items() for word in words.split()}
_WORD = r"[A-Za-z\u4e00-\u9fff][\w .-]{0,40}?"
#: In double braces any word is a placeholder. Single marks also stand in prose and code, so they
#: count only around the words above, and in capitals or Chinese (braces and ``$`` are exempt).
_DOUBLE = re.compile(
    rf"\{{\{{\s*({_WORD})\s*\}}\}}|\[\[\s*({_WORD})\s*\]\]|<<\s*({_WORD})\s*>>|\$\{{\s*({_WORD})\s*\}}"
)
_CAPITALS = r"\s*([A-Z][A-Z_ ]{1,30}|[\u4e00-\u9fff]{2,6})\s*"
_SINGLE = re.compile(
    rf"<{_CAPITALS}>|\[{_CAPITALS}\]|【{_CAPITALS}】|%([A-Z][A-Z_]{{1,30}})%"
    r"|(?<![\w{])\{\s*([A-Za-z_]{2,30}|[\u4e00-\u9fff]{2,6})\s*\}(?!\})"
    r"|(?<![\w$])\$([A-Z][A-Z_]{1,30})\b|(?<!\w)__([A-Za-z]+(?:_[A-Za-z]+)*)__(?!\w)"
)
_STRAY = re.compile(r"\{\{|\}\}|\{%|%\}|<(?:name|author|role)>")
_CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def find(text: str) -> list[str]:
    """The placeholders in a text as they are written, each once."""
    return list(dict.fromkeys(m.group() for m, _ in _matches(text, lambda _: False)))


def leftover(text: str) -> str:
    """The first placeholder, or stray mark of one, in a text that should have none; else ""."""
    stray = _STRAY.search(text)
    return next(iter(find(text)), stray[0] if stray else "")


def fill(row: Conversation, value: Fill) -> Conversation:
    """``row`` with every placeholder filled that ``value`` knows."""
    messages = [{**m, "content": _filled(m["content"], row.locale, value)} for m in row.messages]
    return row if messages == row.messages else replace(row, messages=messages)  # type: ignore[arg-type]


def of_persona(persona: Persona) -> Fill:
    """Values of a persona's slots, in the row's language or else in the persona's first."""

    def value(slot: str, locale: str) -> str | None:
        if slot not in persona.pack.slots:
            return None
        spoken = locale if locale in persona.locales else persona.locales[0]
        return persona.slot(slot, spoken) or next(iter(persona.aliases(slot)), None)

    return value


def of_values(values: Mapping[str, str]) -> Fill:
    """Values by ``name`` or, for one language, ``name.zh``."""
    return lambda slot, locale: values.get(f"{slot}.{locale}", values.get(slot))


def _filled(text: str, locale: str, value: Fill) -> str:
    parts, done = [], 0
    for match, slot in _matches(text, lambda word: value(word, locale) is not None):
        found = value(slot, locale)
        if found is not None:
            parts += [text[done : match.start()], templating.marked(found)]
            done = match.end()
    return templating.settled("".join([*parts, text[done:]]))


def _matches(text: str, known: Callable[[str], bool]) -> Iterator[tuple[re.Match[str], str]]:
    """(match, slot or word) in order, outside of code; ``known``: slots beside those of _WORDS."""
    if not any(mark in text for mark in "{[<$【_%"):
        return
    code = [m.span() for m in _CODE.finditer(text)]
    found = [(m, True) for m in _DOUBLE.finditer(text)]
    taken = [m.span() for m, _ in found]
    for match in _SINGLE.finditer(text):
        if not any(a < match.end() and match.start() < b for a, b in taken):
            found.append((match, False))
    for match, double in sorted(found, key=lambda item: item[0].start()):
        if any(a <= match.start() < b for a, b in code):
            continue
        word = _word(match)
        if word in _SLOTS or double or known(word):
            yield match, _SLOTS.get(word, word)


def _word(match: re.Match[str]) -> str:
    written = next(g for g in match.groups() if g is not None)
    return re.sub(r"[\s.-]+", "_", written.strip().lower()).strip("_")
