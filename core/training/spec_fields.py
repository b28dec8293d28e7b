"""The fields of a training spec, as a form draws them and a command line names them."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from typing import Any

from core.errors import UserError
from core.records import choices_of, plain
from core.training.spec import TrainSpec


@dataclass(frozen=True)
class Field:
    """One editable field. ``choices`` is empty where any value of ``type`` goes."""

    name: str
    part: int
    label: str
    help: str
    type: str
    default: Any
    choices: tuple[Any, ...]
    minimum: float | None


def _fields() -> list[Field]:
    made = []
    for name, info in TrainSpec.model_fields.items():
        extra = typing.cast("dict[str, int]", info.json_schema_extra)
        least = [getattr(m, end) for m in info.metadata for end in ("ge", "gt") if hasattr(m, end)]
        made.append(
            Field(
                name,
                extra["part"],
                info.title or name,
                info.description or "",
                _type_name(info.annotation),
                None if info.is_required() else info.default,
                choices_of(info.annotation),
                next(iter(least), None),
            )
        )
    return made


def _type_name(hint: Any) -> str:
    """choice, list, int, float, bool, str, or text (which may be None)."""
    if choices_of(hint):
        return "choice"
    if typing.get_origin(plain(hint)) is tuple:
        return "list"
    return str(hint.__name__) if isinstance(hint, type) else "text"


#: Every field of TrainSpec in form order.
FIELDS: list[Field] = _fields()


def parse_assignment(text: str) -> tuple[str, Any]:
    """``lr=5e-4`` from a command line -> ("lr", 0.0005), typed by the field.

    Lists are separated by ``|``: ``evaluation_inputs=Who are you?|Who made you?``.

    Raises:
        UserError: there is no '=', no such field, or it cannot have this value.
    """
    name, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"cannot read the setting {text!r}", fix="write NAME=VALUE, e.g. lr=5e-4")
    return name.strip(), TrainSpec.parse(name.strip(), value.strip())
