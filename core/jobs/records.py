"""Records that a job prints for its supervisor, and how they are told from what else it prints.

Whatever a job prints is in one log: library messages, and text out of datasets, models and
servers. A line is a record only if it begins with a prefix that holds a secret of this run, which
the supervisor makes up and only the job's processes see; and only as far as it fits the schema.
"""

from __future__ import annotations

import math
import os
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from core import fsio
from core.jobs.journal import clean, parse_record

#: Environment variable with the run's secret. Not called a secret: what is goes out of the job's
#: output as ``***`` (``errors.redacted``), and with it every record would.
SECRET = "PERSONA_RECORD_MARK"
#: Every line that was meant for the supervisor begins so, also one of another run.
PREFIX = "@@persona "
#: mmengine's text line, e.g. ``Iter(train) [ 10/500]  lr: 2e-4  eta: 0:01:00  loss: 2.31``.
_MMENGINE = re.compile(r"Iter\(train\)\s*\[\s*(\d{1,12})/(\d{1,12})\]\s+(.*)")
_PAIR = re.compile(r"(\w+):\s*(\S+)")
_NAMES = {
    "lr": "lr",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "time": "s_per_step",
    "memory": "memory_bytes",
    "tokens_per_s": "tokens_per_s",
}

_Count = Annotated[int, Field(ge=0, le=10**15)]
_Text = Annotated[str, Field(max_length=20_000)]
#: JSON has no NaN: null stands for it, and the flag ``nan`` tells that it was one.
_Figure = bool | float | None


class ProgressRecord(BaseModel):
    """How far a stage has come."""

    type: Literal["progress"]
    stage: Annotated[str, Field(max_length=200)]
    done: _Count
    total: _Count


class Metric(BaseModel):
    """Figures of one optimizer step; any further field is a number or a flag too."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Figure]

    type: Literal["metric"]
    step: _Count
    max_steps: _Count
    nan: bool = False


class Sample(BaseModel):
    """A reply to a sample prompt."""

    type: Literal["sample"]
    step: _Count
    prompt: _Text
    reply: _Text


class FiguresRecord(BaseModel):
    """Figures that a job measured at a step, beside its metrics; null: no number."""

    type: Literal["figures"]
    step: _Count
    values: Annotated[
        dict[Annotated[str, Field(max_length=60)], FiniteFloat | None], Field(max_length=60)
    ]


Record = ProgressRecord | Metric | Sample | FiguresRecord
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="type")])


def emit(record: dict[str, Any]) -> None:
    """Print one record for the supervisor (in the job's process)."""
    print(_prefix(os.environ.get(SECRET, "")) + fsio.dump_json(record), flush=True)


def _prefix(secret: str) -> str:
    return f"{PREFIX}{secret} " if secret else PREFIX


def parse_line(line: str, secret: str = "", *, mmengine: bool = False) -> Record | None:
    """The record in a line of a job's output; None if it is an ordinary line. Never raises.

    Args:
        secret: of this run; without it any line with the public prefix counts.
        mmengine: also read mmengine's own ``Iter(train)`` lines. Only for jobs that print no
            records of ours: mmengine counts micro-batches where ours count optimizer steps.
    """
    found: dict[str, Any] | None = None
    if line.startswith(_prefix(secret)):
        found = parse_record(line[len(_prefix(secret)) :].encode("utf-8", "replace"))
    elif mmengine and (match := _MMENGINE.search(clean(line))):
        found = _from_mmengine(match)
    if found is None:
        return None
    bad = [k for k, v in found.items() if isinstance(v, float) and not math.isfinite(v)]
    found |= {**dict.fromkeys(bad), "nan": True} if bad else {}
    try:
        return _RECORD.validate_python(found)
    except (ValidationError, RecursionError):
        return None


def _from_mmengine(match: re.Match[str]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "type": "metric",
        "step": int(match[1]),
        "max_steps": int(match[2]),
    }
    for name, text in _PAIR.findall(match[3]):
        if name in _NAMES:
            record[_NAMES[name]] = _number(text)
    if isinstance(record.get("memory_bytes"), float):
        record["memory_bytes"] *= 1e6  # mmengine prints MB
    return record


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
