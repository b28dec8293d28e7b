"""``spec.json``: what a run is asked to do. Written once; a change is a new run with a parent."""

from __future__ import annotations

import secrets
import time
from typing import Any, ClassVar

from pydantic import Field

from core import fsio
from core.errors import UserError
from core.paths import RunPaths
from core.records import Record, Texts

SCHEMA = 1


class Options(Record):
    """How the supervisor treats the job.

    Attributes:
        grace_seconds: between SIGTERM and SIGKILL. 30 s is what SkyPilot and Kubernetes give.
        stall_seconds: silence in the log after which the run is shown as stalled.
        nan_steps: consecutive steps with a loss that is not a number before a warning. More than
            the three of a training of ours, which ends by itself and says why (``health.py``).
        stop_on_nan: end the run (FAILED, diverged) at that point instead of only warning.
        pass_env: names of further environment variables that the job may see, such as
            ``HF_TOKEN`` for a job that downloads. Names only: values are never written down.
    """

    called: ClassVar[str] = "job"

    grace_seconds: float = 30.0
    stall_seconds: float = 300.0
    nan_steps: int = 10
    stop_on_nan: bool = True
    pass_env: Texts = ()


class RunSpec(Record):
    """The contents of ``spec.json``.

    Attributes:
        params: what the job of this kind is asked to do, as its JobSpec writes it.
        mark: random; put into the job's environment so that every process of it can be found.
        argv: for the kind ``command`` only.
    """

    called: ClassVar[str] = "run"

    kind: str
    name: str
    params: dict[str, Any]
    seq: int
    parent: str | None = None
    argv: Texts = ()
    options: Options = Field(default_factory=Options)
    created: float = Field(default_factory=time.time)
    mark: str = Field(default_factory=lambda: secrets.token_hex(16))

    def write(self, run: RunPaths) -> None:
        """Atomic."""
        fsio.write_json(run.spec, {"schema": SCHEMA, **self.to_dict()})


def run_title(name: str, run_id: str) -> str:
    """A run as every page names it: its name and the end of its id."""
    return f"{name} · {run_id[-4:]}"


def read_spec(run: RunPaths) -> RunSpec:
    """Raises UserError: no such run, or a spec.json that this version cannot read."""
    if not run.root.is_dir():
        raise UserError(
            f"run {run.root.name} is gone",
            why=f"{run.root} does not exist",
            fix="choose another run",
        )
    raw = fsio.read_json(run.spec)
    if not isinstance(raw, dict) or raw.pop("schema", None) != SCHEMA:
        raise _unreadable(run, "it was written by another version")
    try:
        return RunSpec.from_dict(raw)
    except UserError as error:
        raise _unreadable(run, str(error)) from error


def _unreadable(run: RunPaths, why: str) -> UserError:
    return UserError(
        f"{run.spec} cannot be read",
        why=why,
        fix="delete the run, or open it with the version that made it",
    )
