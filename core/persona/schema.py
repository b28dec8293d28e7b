"""The persona pack: what a YAML file in data_templates/ may hold (schema persona/1)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Locale = Annotated[str, StringConstraints(pattern=r"^[a-z]{2}$")]
Ident = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$")]
Sentence = Annotated[str, StringConstraints(min_length=1, max_length=2000)]
Family = Literal[
    "identity",
    "ability",
    "usage",
    "limits",
    "origin",
    "denial",
    "smalltalk",
    "inducement",
    "near_miss",
]
Disclose = Literal["never", "optional", "always"]
StyleName = Literal["plain", "terse", "polite", "typo", "skeptical", "child", "code_switch"]
#: Stands for "a general turn" in ``dialogues.start`` and for the end in ``next``.
GENERAL, END = "GENERAL", "END"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)


class Head(_Strict):
    """Who the pack is about."""

    id: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]
    title: dict[Locale, str] = {}
    locales: Annotated[list[Locale], Field(min_length=1)]


class Slot(_Strict):
    """A value per locale: ``text`` for one value, ``items`` for a list to choose ``pick`` from.

    ``aliases`` are other spellings that count as right when a reply is scored.
    ``disclose`` (slot ``base`` only): may the persona name the model it is built on?
    """

    text: dict[Locale, str] = {}
    items: dict[Locale, list[str]] = {}
    aliases: list[str] = []
    required: bool = False
    pick: Annotated[int, Field(ge=1, le=20)] = 3
    disclose: Disclose | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Slot:
        if self.text and self.items:
            raise ValueError("a slot has 'text' or 'items', not both")
        return self


class Cluster(_Strict):
    """Wordings of one question that are close to each other; held out together or not at all."""

    c: Ident
    t: Annotated[list[Sentence], Field(min_length=1)]


class Step(_Strict):
    """An edge of the dialogue graph: the next intent, with weight ``p``."""

    to: str
    p: Annotated[float, Field(gt=0, le=1)]


class Intent(_Strict):
    """Something users ask, how they ask it, and how the persona answers.

    ``short`` replies are used from the second identity turn of a dialogue on: a full
    self-introduction at turn four is what a collapsed model does.
    ``disclosed`` replies are used instead of ``reply`` where slot ``base`` may be named.
    ``must``: slots that every reply holds; ``must_any``: at least one of these slots.
    ``reply: BASE`` (family near_miss): the base model's own reply is the right one.
    ``weight``: how often it is asked on its own, relative to its number of wordings.
    """

    family: Family
    user: dict[Locale, list[Cluster]]
    reply: dict[Locale, list[Sentence]] | Literal["BASE"]
    short: dict[Locale, list[Sentence]] = {}
    disclosed: dict[Locale, list[Sentence]] = {}
    must: list[Ident] = []
    must_any: list[Ident] = []
    weight: Annotated[float, Field(gt=0, le=10)] = 1.0
    next: list[Step] = []

    @property
    def trained(self) -> bool:
        """Whether the persona answers it (near-miss questions are answered by the base model)."""
        return self.reply != "BASE"


class Dialogues(_Strict):
    """How the graph is walked: where it starts, how many rounds, how often a general turn."""

    start: dict[str, Annotated[float, Field(gt=0)]] = {}
    rounds: dict[Annotated[int, Field(ge=2, le=16)], Annotated[float, Field(gt=0)]] = {
        2: 0.5,
        3: 0.3,
        4: 0.2,
    }
    insert_general: Annotated[float, Field(ge=0, le=1)] = 0.5


class Pack(_Strict):
    """A whole file."""

    schema_: Literal["persona/1"] = Field(alias="schema")
    persona: Head
    slots: dict[Ident, Slot]
    params: dict[Ident, dict[Locale, list[str]]] = {}
    forbid_self: list[str] = []
    system: dict[Locale, list[Sentence]] = {}
    intents: Annotated[dict[Ident, Intent], Field(min_length=1)]
    dialogues: Dialogues = Dialogues()
    user_styles: Annotated[list[StyleName], Field(min_length=1)] = ["plain"]
