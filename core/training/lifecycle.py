"""Starting and resuming training runs: one path for the page and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import UserError
from core.jobs import api, reasons
from core.jobs.observe import read_error, read_exit
from core.jobs.reasons import Fault
from core.jobs.spec import Options, read_spec
from core.jobs.state import Status
from core.paths import RunPaths
from core.training import checkpoints

if TYPE_CHECKING:
    from core.training.checkpoints import Checkpoint
    from core.training.preflight import Preflight
    from core.training.spec import TrainSpec


def options_for(spec: TrainSpec) -> Options:
    """A hub model may need the token of whoever is logged in by environment; others do not."""
    downloads = spec.model != "bundled" and not Path(spec.model).exists()
    return Options(pass_env=("HF_TOKEN",) if downloads else ())


def start_training(found: Preflight, *, name: str, parent: str | None = None) -> RunPaths:
    """Launch the run that was looked at.

    Raises:
        UserErrors: everything that would go wrong, at once.
        AlreadyStarted: the very same run is active.
    """
    spec = found.check().spec
    return api.launch(spec, name=name, parent=parent, options=options_for(spec), checked=True)


def training_spec(run: RunPaths) -> TrainSpec:
    """The spec of a training run. Raises UserError if the run is of another kind."""
    from core.training.spec import TrainSpec

    spec = read_spec(run)
    if spec.kind != "train":
        raise UserError(f"{run.root.name} is a {spec.kind} run, not a training run")
    return TrainSpec.from_dict(spec.params)


def change_training(run: RunPaths, changes: Mapping[str, Any]) -> RunPaths:
    """Start a new run with other settings than ``run``, from the beginning; ``run`` is its parent.

    Raises:
        UserErrors: everything that would go wrong, at once.
    """
    old = training_spec(run)
    spec = type(old).from_dict({**old.to_dict(), "resume_from": None, **changes})
    return _start(spec, read_spec(run).name, run)


def fault_of(run: RunPaths, now: Status) -> Fault:
    """What went wrong in a failed training run, with fixes that fit its settings."""
    code = (read_exit(run) or {}).get("returncode")
    table = reasons.table_of(read_spec(run), run)
    return reasons.diagnose(table, now.log_tail, returncode=code, error=read_error(run))


def resumable(run: RunPaths) -> bool:
    """Whether there is a whole checkpoint to go on from."""
    steps = training_spec(run).steps
    return any(c.whole and c.step < steps for c in checkpoints_of(run))


def checkpoints_of(run: RunPaths) -> list[Checkpoint]:
    """Checkpoints of a training run by step, torn ones with the reason."""
    return checkpoints.scan(run.work, training_spec(run).accumulation)


def resume_training(
    run: RunPaths,
    step: int | None = None,
    *,
    name: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> RunPaths:
    """Go on from a checkpoint as a new run whose parent is ``run``.

    Args:
        step: optimizer step of the checkpoint; None takes the newest whole one that is not the
            end of the run.
        changes: settings to change. Most make the result another one, and are then refused with
            the reason.

    Raises:
        UserError: no such checkpoint, it is torn, or the run would not be the same one.
    """
    old = training_spec(run)
    found = checkpoints_of(run)
    if step is None:
        usable = [c for c in found if c.whole and c.step < old.steps]
        if not usable:
            raise UserError(
                f"run {run.root.name} has no checkpoint to go on from",
                why="; ".join(f"step {c.step} {c.problem}" for c in found if c.problem)
                or "none was written before the end",
                fix="start a new run",
            )
        chosen = usable[-1]
    else:
        chosen = next((c for c in found if c.step == step), None) or _missing(run, step, found)
        if not chosen.whole:
            raise UserError(
                f"the checkpoint of step {step} cannot be used",
                why=chosen.problem,
                fix="choose an earlier one",
            )
    spec = type(old).from_dict(
        {**old.to_dict(), **(changes or {}), "resume_from": str(chosen.path)}
    )
    return _start(spec, name or read_spec(run).name, run)


def _start(spec: TrainSpec, name: str, parent: RunPaths) -> RunPaths:
    from core.training.preflight import preflight

    return start_training(preflight(spec), name=name, parent=parent.root.name)


def _missing(run: RunPaths, step: int, found: list[Checkpoint]) -> Checkpoint:
    steps = ", ".join(str(c.step) for c in found) or "none"
    raise UserError(
        f"run {run.root.name} has no checkpoint of step {step}", fix=f"there are: {steps}"
    )
