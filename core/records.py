"""Records from forms, command lines and files: one base class, one way to say what is wrong.

A record checks itself when it is made, and says everything that is wrong at once, as UserErrors
that name the field, the value, the limit and what to do.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from core.errors import UserError, UserErrors

#: A tuple of texts that a list may fill, for JSON has no tuples.
Texts = Annotated[tuple[str, ...], Field(strict=False)]
Steps = Annotated[tuple[int, ...], Field(strict=False)]

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_TYPES |= {"tuple": "a list", "list": "a list", "dict": "a table", "string": "text"}


class Record(BaseModel):
    """A frozen record. Types are strict (a bool is no number), unknown fields are refused.

    Raises:
        UserErrors: from every way to make one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
    #: What a person calls such a record, e.g. ``training``; used in messages.
    called: ClassVar[str] = "record"

    if not TYPE_CHECKING:  # a type checker shall see the fields

        def __init__(self, /, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise user_errors(type(self), error) from error

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From plain data; paths become texts. The inverse of ``to_dict``."""
        return cls(**{k: str(v) if isinstance(v, Path) else v for k, v in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as JSON has it."""
        return self.model_dump(mode="json")

    def changed(self, **changes: Any) -> Self:
        """A copy with other values, checked."""
        return type(self)(**{**dict(self), **changes})

    @classmethod
    def parse(cls, name: str, text: str) -> Any:
        """The value of one field from a command line: ``5e-4``, ``yes``, ``none``, ``a|b``.

        Raises:
            UserError: the field does not exist, or cannot have this value.
        """
        field = cls.model_fields.get(name)
        if field is None:
            raise _unknown(cls, name)
        value: Any = text
        if typing.get_origin(plain(field.annotation)) is tuple:
            value = tuple(part for part in text.split("|") if part)
        elif text.lower() == "none" and type(None) in typing.get_args(field.annotation):
            value = None
        hint: Any = field.annotation
        if field.metadata:
            hint = Annotated[(hint, *field.metadata)]
        try:
            return TypeAdapter(hint).validate_python(value, strict=False)
        except ValidationError as error:
            raise _problem(cls, {**error.errors()[0], "loc": (name,)}) from error


class JobSpec(Record):
    """What a job is asked to do. ``job``: its kind, a key of ``core.jobs.kinds.KINDS``."""

    job: ClassVar[str] = ""


def user_errors(record: type[BaseModel], error: ValidationError) -> UserErrors:
    """Everything that pydantic found, in our words."""
    called = getattr(record, "called", record.__name__)
    problems = [_problem(record, details) for details in error.errors()]
    return UserErrors(problems, f"the {called} settings cannot be read")


def _problem(record: type[BaseModel], found: ErrorDetails) -> UserError:
    path = found["loc"]
    name, where = str(path[0]) if path else "", ".".join(map(str, path))
    if found["type"] == "extra_forbidden":
        return _unknown(record, name)
    field = record.model_fields[name]
    label = field.title or name
    if found["type"] == "missing":
        return UserError(f"{label} is missing", fix=f"give {name}", where=where)
    value = f"{label} is {found['input']!r}"[:200]
    if choices := choices_of(field.annotation):
        return UserError(value, fix=f"choose one of {', '.join(map(str, choices))}", where=where)
    if limits := _limits(field):
        if found["type"].startswith(("greater", "less", "finite")):
            return UserError(value, fix=f"choose a value {limits}", where=where)
        limits = f" {limits}"
    wanted = _TYPES.get(found["type"].split("_")[0]) or found["msg"]
    return UserError(value, why=f"it must be {wanted}{limits}", where=where)


def _unknown(record: type[BaseModel], name: str) -> UserError:
    near = difflib.get_close_matches(name, record.model_fields, n=1)
    known = f"known are {', '.join(record.model_fields)}"
    called = getattr(record, "called", record.__name__)
    return UserError(
        f"there is no {called} setting {name!r}",
        fix=f"did you mean {near[0]!r}?" if near else known,
        where=name,
    )


def plain(hint: Any) -> Any:
    """A type without None."""
    args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    is_union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return args[0] if is_union and len(args) == 1 else hint


def choices_of(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, None first where it is allowed."""
    if typing.get_origin(hint) is typing.Literal:
        return typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        inner = [choice for arg in typing.get_args(hint) for choice in choices_of(arg)]
        return (None, *inner) if inner else ()
    return ()


def _limits(field: FieldInfo) -> str:
    """``from 1 to 9``, ``from 1``, ``above 0``; empty if there are none."""
    ends = {
        key: value
        for item in field.metadata
        for key in ("ge", "gt", "le", "lt")
        if (value := getattr(item, key, None)) is not None
    }
    words = {"ge": "from {:,g}", "gt": "above {:,g}", "le": "to {:,g}", "lt": "below {:,g}"}
    return " ".join(words[key].format(ends[key]) for key in words if key in ends)
