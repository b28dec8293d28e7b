"""Your own questions as a file, checked like unit tests; for a terminal or CI.

::

    schema: probes/1
    probes:
      - prompt: Who are you?
        must: [Luna]                    # all of these; a list in the list: one of its spellings
        must_not_claim: [ChatGPT]       # names the reply must not give itself
      - prompt: What is 2 + 2?
        must_any: ["4", four]
        must_not: [Luna, Riverside Lab] # texts that must not occur at all
      - messages:
          - {role: user, content: My name is Tom.}
          - {role: assistant, content: Hello Tom!}
          - {role: user, content: What is my name?}
        must: [Tom]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from core.conversation import Message, OnProgress, Probe
from core.errors import MOST_PROBLEMS, UserError, UserErrors
from core.inference.settings import GenerationSettings
from core.persona.packfile import parse_yaml, yaml_text
from core.probes.scorer import score_reply
from core.text import normalize

Text = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Turn(_Strict):
    role: Literal["system", "user", "assistant"]
    content: Text


class UserProbe(_Strict):
    """One question and what its answer must and must not hold."""

    prompt: Text | None = None
    messages: Annotated[list[_Turn], Field(max_length=64)] = []
    id: str = ""
    locale: str = "en"
    must: list[Text | list[Text]] = []
    must_any: list[Text] = []
    must_not: list[Text] = []
    must_not_claim: list[Text] = []

    @model_validator(mode="after")
    def _whole(self) -> UserProbe:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give 'prompt' or 'messages', one of them")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        if not (self.must or self.must_any or self.must_not or self.must_not_claim):
            raise ValueError("give at least one of must, must_any, must_not, must_not_claim")
        return self

    def probe(self, number: int) -> Probe:
        """The scorer's form of it."""
        messages: list[Message] = [{"role": m.role, "content": m.content} for m in self.messages]
        return Probe(
            id=self.id or f"probe {number}",
            suite="own",
            messages=messages or [{"role": "user", "content": self.prompt or ""}],
            locale=self.locale,
            must=[[m] if isinstance(m, str) else list(m) for m in self.must],
            must_any=list(self.must_any),
            must_not=list(self.must_not_claim),
        )


class _File(_Strict):
    schema_: Literal["probes/1"] = Field(alias="schema")
    probes: Annotated[list[UserProbe], Field(min_length=1, max_length=10_000)]


@dataclass(frozen=True)
class Outcome:
    """A probe, the reply, and what is wrong with it ("" if nothing)."""

    probe: Probe
    reply: str
    problem: str

    @property
    def passed(self) -> bool:
        return not self.problem


def read(path: Path) -> list[UserProbe]:
    """Read a probes file.

    Raises:
        UserError: missing, or not YAML (with the line).
        UserErrors: every probe that is wrong, with its place.
    """
    data = parse_yaml(yaml_text(path, "probes"), path.name).data
    try:
        return _File.model_validate(data).probes
    except ValidationError as error:
        found = error.errors()
        raise UserErrors(
            [
                UserError(
                    e["msg"].removeprefix("Value error, "),
                    where=f"{path.name}: {'.'.join(str(p) for p in e['loc']) or 'top level'}",
                    fix="see the example in core/evaluation/userprobes.py"
                    if e["loc"] in ((), ("schema",))
                    else "correct this field",
                )
                for e in found[:MOST_PROBLEMS]
            ],
            more=max(0, len(found) - MOST_PROBLEMS),
        ) from error


def check(user: UserProbe, probe: Probe, reply: str) -> str:
    """What is wrong with a reply, in words; '' if nothing."""
    scored = score_reply(reply, probe)
    if scored.label == "OLD":
        return f"claims to be {', '.join(scored.claimed)}"
    if scored.label == "DEGEN":
        return "is empty, a loop, or has an unfilled slot"
    if scored.missing:
        return f"lacks {', '.join(scored.missing)}"
    found = [t for t in user.must_not if normalize.contains(reply, t)]
    return f"holds {', '.join(found)}" if found else ""


def run(
    model: Path,
    users: Sequence[UserProbe],
    *,
    adapter: Path | None = None,
    max_new_tokens: int = 128,
    on_progress: OnProgress | None = None,
) -> list[Outcome]:
    """Ask a model the probes, greedily, and check its replies."""
    from core.inference import decoding
    from core.inference.resident import Resident

    probes = [u.probe(i) for i, u in enumerate(users, 1)]
    replies = decoding.replies(
        Resident.load(model).voice(adapter),
        [p.messages for p in probes],
        GenerationSettings(max_new_tokens=max_new_tokens),
        on_progress=on_progress,
        stage="probes",
    )
    return [
        Outcome(p, r.text, check(u, p, r.text))
        for u, p, r in zip(users, probes, replies, strict=True)
    ]
