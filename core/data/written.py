"""A whole conversation written as one text: HH, guanaco, Alpaca, ChatML, Llama 2 and 3.

Such texts are what other tools feed a tokenizer; here the marks are taken for what they mean, so
that the model's own template can write its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from core.conversation import Role
from core.data.fields import RowError
from core.data.talk import ROLE_NAMES

_ROLES: dict[str, Role] = {
    **ROLE_NAMES,
    "instruction": "user",
    "input": "user",
    "response": "assistant",
}
_NAMES = "Human|User|Assistant|System|Instruction|Input|Response"
#: A mark with the name of who speaks, by the way of writing. The first that the text begins with
#: is taken, so that a "User:" inside a reply is text.
_STYLES = (
    re.compile(r"<\|im_start\|>\s*(\w+)[ \t]*\n"),
    re.compile(r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>\s*"),
    re.compile(r"<start_of_turn>\s*(\w+)[ \t]*\n"),
    re.compile(r"<\|(system|user|assistant)\|>[ \t]*\n?"),
    re.compile(rf"(?:^|\s*)###\s*({_NAMES})\s*:?[ \t]*\n?"),
    re.compile(r"(?:^|\n\s*\n\s*)(Human|Assistant|System|H|A):[ \t]*"),
    re.compile(r"(?:^|\n\s*)(Human|User|USER|Assistant|ASSISTANT):[ \t]*"),
)
_SHORT = {"h": "human", "a": "assistant"}
_END = re.compile(
    r"(?:\s*(?:<\|(?:im_end|eot_id|end_of_text|endoftext|end)\|>|</s>|<end_of_turn>|<eos>))+\s*$"
)
_BEGIN = re.compile(r"^\s*(?:(?:<s>|<bos>|<\|begin_of_text\|>)\s*)*")
_INST = re.compile(r"(?:<s>\s*)?\[INST\](.*?)\[/INST\](.*?)(?=(?:<s>\s*)?\[INST\]|\Z)", re.DOTALL)
_SYS = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
#: What Alpaca's prompt says before its first mark.
_PREAMBLE = re.compile(r"^Below is an instruction that describes a task[^#]{0,200}(?=###)")


def turns_in(text: str) -> list[tuple[Role, str]]:
    """The turns of a text that is a whole conversation; [] if it is none.

    Raises:
        RowError: a mark names somebody who is neither user, assistant nor system.
    """
    text = _PREAMBLE.sub("", _BEGIN.sub("", text))
    if text.startswith("[INST]"):
        return list(_instructions(text))
    styles = [s for s in _STYLES if s.match(text)]
    # "Human: " alone may be a word of the text; what other tools mark with <...> is not.
    style = next((s for s in styles if text[0] == "<" or len(s.findall(text)) > 1), None)
    return list(_marked(text, style)) if style else []


def _marked(text: str, style: re.Pattern[str]) -> Iterator[tuple[Role, str]]:
    marks = list(style.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    for mark, end in zip(marks, ends, strict=True):
        name = mark[1].lower()
        role = _ROLES.get(_SHORT.get(name, name))
        if role is None:
            raise RowError("text", f"unknown role {mark[1]!r}", "use system, user and assistant")
        yield role, _END.sub("", text[mark.end() : end]).strip()


def _instructions(text: str) -> Iterator[tuple[Role, str]]:
    """``[INST] <<SYS>> .. <</SYS>> question [/INST] reply </s>``."""
    for asked, said in _INST.findall(text):
        system = _SYS.match(asked)
        if system:
            yield "system", system[1].strip()
        yield "user", asked[system.end() if system else 0 :].strip()
        if reply := _END.sub("", said).strip():
            yield "assistant", reply
