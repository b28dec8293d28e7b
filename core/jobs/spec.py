"""``spec.json``: what a run is asked to do. Written once; a change is a new run with a parent."""

from __future__ import annotations

import secrets
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from core import fsio
from core.errors import UserError
from core.paths import RunPaths

SCHEMA = 1


@dataclass(frozen=True)
class Options:
    """How the supervisor treats the job.

    Attributes:
        grace_seconds: between SIGTERM and SIGKILL. 30 s is what SkyPilot and Kubernetes give.
        stall_seconds: silence in the log after which the run is shown as stalled.
        nan_steps: consecutive steps with a loss that is not a number before a warning.
        stop_on_nan: end the run (FAILED, nan_loss) at that point instead of only warning.
        pass_env: names of further environment variables that the job may see, such as
            ``HF_TOKEN`` for a job that downloads. Names only: values are never written down.
    """

    grace_seconds: float = 30.0
    stall_seconds: float = 300.0
    nan_steps: int = 10
    stop_on_nan: bool = True
    pass_env: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunSpec:
    """The contents of ``spec.json``.

    Attributes:
        mark: random; put into the job's environment so that every process of it can be found.
        argv: for the kind ``command`` only.
    """

    kind: str
    name: str
    params: dict[str, Any]
    seq: int
    parent: str | None = None
    argv: tuple[str, ...] = ()
    options: Options = field(default_factory=Options)
    created: float = field(default_factory=time.time)
    mark: str = field(default_factory=lambda: secrets.token_hex(16))

    def write(self, run: RunPaths) -> None:
        """Atomic."""
        fsio.write_json(run.spec, {"schema": SCHEMA, **asdict(self)})


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
    try:
        if raw.pop("schema") != SCHEMA:
            raise ValueError("it was written by another version")
        raw["options"] = Options(
            **{**raw["options"], "pass_env": tuple(raw["options"]["pass_env"])}
        )
        raw["argv"] = tuple(raw["argv"])
        return RunSpec(**raw)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run.spec} cannot be read",
            why=str(error),
            fix="delete the run, or open it with the version that made it",
        ) from error
