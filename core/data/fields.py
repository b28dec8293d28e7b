"""One value of a foreign row: is it anything, what text is it, is it safe to train on.

Every check names the field at fault by its path in the row and says how to mend it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

#: Marks such as ``<|im_end|>``: a tokenizer turns them into control tokens, so in the middle of
#: a text they would end the turn.
CONTROL_MARK = re.compile(r"<\|[A-Za-z0-9_]{1,40}\|>")
#: What a keyboard does not write: remains of a terminal or of a wrong encoding.
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
#: What other tools write where an optional text is missing.
_NOTHING = re.compile(
    r"\s*(?:<\s*no[ _]?(?:input|output|history|system)\s*>|n\s*/\s*a\.?|nan|null|none"
    r"|<?无输入>?)?\s*",
    re.IGNORECASE,
)
_TEXT_PARTS = ("text", "input_text", "output_text")


class RowError(Exception):
    """One row cannot be used. ``field`` is a path inside the row, e.g. ``messages[2].role``."""

    def __init__(self, field: str, what: str, fix: str) -> None:
        super().__init__(field, what, fix)
        self.field = field
        self.what = what
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.field}: {self.what}"


def is_nothing(value: Any) -> bool:
    """Null, NaN, blank text, an empty list or object."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def says_nothing(value: Any) -> bool:
    """``is_nothing``, or a text that stands for it in optional fields: ``<noinput>``, ``N/A``."""
    return is_nothing(value) or (isinstance(value, str) and bool(_NOTHING.fullmatch(value)))


def plain_text(value: Any, at: str) -> str:
    """A text, a number as text, or the joined text parts of ``[{"type": "text", "text": ..}]``.

    Raises:
        RowError: anything else, such as a picture.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float) and math.isinf(value):
        raise RowError(at, "a number that is too large", "write it as text")
    if isinstance(value, (bool, int, float)):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if isinstance(value, Mapping) and isinstance(value.get("parts"), list):
        value = value["parts"]
    if isinstance(value, Mapping) and ("type" in value or value.keys() == {"text"}):
        value = [value]
    if isinstance(value, list):
        return "".join(_part(part, f"{at}[{i}]") for i, part in enumerate(value))
    raise RowError(at, f"a {type(value).__name__} where text belongs", "use one string")


def _part(part: Any, at: str) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, Mapping) and kind in _TEXT_PARTS and isinstance(part.get("text"), str):
        return str(part["text"])
    raise RowError(
        at,
        f"a part of type {str(kind)[:40]!r} where text belongs",
        "only one text can be trained: join several, leave out pictures, sounds and tool calls",
    )


def check_text(value: Any, at: str) -> str:
    """The text of one turn; RowError if it is no text, empty, or unsafe to train on."""
    text = "" if is_nothing(value) else plain_text(value, at)
    if not text.strip():
        raise RowError(at, "the text is empty", "write the text, or remove the turn pair")
    if mark := CONTROL_MARK.search(text):
        raise RowError(
            at,
            f"the text holds the control mark {mark.group()}",
            "remove the mark: a tokenizer would end the turn there",
        )
    return whole(text, at)


def whole(text: str, at: str) -> str:
    """``text``; RowError if it holds half of a surrogate pair, which no file can keep."""
    if _SURROGATE.search(text):
        raise RowError(
            at,
            "the text holds half of a surrogate pair",
            "write the whole character, or remove the escape \\ud8xx-\\udfxx",
        )
    return text


def flag(value: Any, at: str) -> bool:
    """True, false, 1, 0, or their spelling; RowError for anything else."""
    word = str(value).strip().lower()
    if word in ("true", "1", "1.0", "yes"):
        return True
    if word in ("false", "0", "0.0", "no"):
        return False
    raise RowError(at, f"{value!r} is not true or false", "write true or false, or 1 or 0")
