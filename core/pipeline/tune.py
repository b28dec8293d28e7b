"""The main job in one call: all stages, and an output folder with what they made.

The stages' runs and the dataset live in the workspace, where every page lists them. The output
folder holds the same files a second time (hard links where the disk allows it), so either can be
deleted without the other, and ``tune.json``: what was asked, and which run made what. A tune that
was interrupted goes on with the first stage whose result is not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from core import fsio, paths
from core.console import ProgressLine
from core.errors import UserError
from core.jobs import api, standby
from core.jobs.state import ACTIVE, State
from core.models import folder
from core.paths import RunPaths
from core.pipeline import stages
from core.pipeline.stages import PRODUCT, STAGES, Made, Stage, TuneSpec
from core.records import Record
from core.training import lifecycle
from core.weights import staging

if TYPE_CHECKING:
    from core.models.catalog import ModelRef


class Ledger(Record):
    """``tune.json``."""

    called: ClassVar[str] = "tune"
    FILE: ClassVar[str] = "tune.json"

    asked: TuneSpec
    made: dict[Stage, Made] = Field(default_factory=dict)

    def with_stage(self, stage: Stage, made: Made, out: Path) -> Ledger:
        """Note a stage, and write it down."""
        ledger = self.changed(made={**self.made, stage: made})
        ledger.write(out)
        return ledger

    def write(self, out: Path) -> None:
        """Atomic."""
        fsio.write_json(out / self.FILE, {"schema": 2, **self.to_dict()})

    def finished(self, stage: Stage) -> bool:
        """Whether the stage is over and nothing is missing of it that is still needed."""
        made = self.made.get(stage)
        if made is None or made.result is None:
            return False
        later = STAGES[STAGES.index(stage) + 1 :]
        needed = not later or not all(s in self.made and self.made[s].result for s in later)
        return not needed or Path(made[PRODUCT[stage]]).exists()


def tune(
    spec: TuneSpec, output: Path, *, resume: bool = False, line: ProgressLine | None = None
) -> dict[str, Any]:
    """Run all stages and return the scorecard that was written to ``output/scorecard.json``.

    Raises:
        UserError: an input is unusable or a stage failed; what is finished stays.
    """
    output, line = output.resolve(), line or ProgressLine()
    ledger = prepare(spec, output, resume=resume)
    try:
        return _all_stages(spec, ledger, output, line)
    finally:
        standby.close()


def _all_stages(spec: TuneSpec, ledger: Ledger, output: Path, line: ProgressLine) -> dict[str, Any]:
    from core.data.build import introduced
    from core.models import catalog

    _get_ready(ledger, STAGES)
    if said := introduced(catalog.resolve(spec.model), stages.dataset_spec(spec)):
        line.note(said)
    for stage in STAGES:
        if ledger.finished(stage):
            line.finished(stage, ledger.made[stage].seconds or 0.0, note="from the earlier run")
        else:
            ledger = _run_stage(stage, ledger, output, line)
        _deliver(stage, ledger, output)
    card: dict[str, Any] = fsio.read_json(output / "scorecard.json")
    return card


def prepare(spec: TuneSpec, output: Path, *, resume: bool) -> Ledger:
    """Check everything that can be checked before work starts; nothing is written if it fails.

    Raises:
        UserError: the persona or model is unusable, the output folder exists (or, with
            ``resume``, was made from another request), or the disk is too small.
    """
    model = require_usable(spec)
    if resume:
        return _earlier(spec, output)
    if output.exists():
        raise UserError(
            f"output folder {output} exists",
            why="a tune never writes over an earlier one",
            fix="choose another --output, or add --resume to go on with that one",
        )
    weights = sum(f.stat().st_size for f in folder.weight_files(model.path))
    # The merged copy, the checkpoints (adapters with optimizer state), the dataset; 20 % spare.
    for place in (paths.runs_dir(), output.parent):
        fsio.require_space(place, int(1.2 * (weights + 500_000_000)), "a tuned model")
    output.mkdir(parents=True)
    ledger = Ledger(asked=spec)
    ledger.write(output)
    return ledger


def require_usable(spec: TuneSpec) -> ModelRef:
    """The base model of a request that can be carried out.

    Raises:
        UserError: the persona or the model is unusable.
    """
    from core.models import catalog
    from core.persona.persona import load_persona
    from core.training.base import require_trainable

    load_persona(Path(spec.persona), spec.overrides)
    model = catalog.resolve(spec.model)
    require_trainable(model.path)
    return model


def read_ledger(output: Path) -> Ledger:
    """Raises UserError: there is none, or it was written by another version."""
    file = output / Ledger.FILE
    record = fsio.read_json(file)
    if not isinstance(record, dict) or record.pop("schema", None) != 2:
        raise UserError(
            f"{file} was written by another version", fix="start anew in another --output"
        )
    return Ledger.from_dict(record)


def _earlier(spec: TuneSpec, output: Path) -> Ledger:
    file = output / Ledger.FILE
    if not file.is_file():
        raise UserError(
            f"{output} holds no tune to resume",
            why=f"it has no {Ledger.FILE}",
            fix="leave --resume out and give a new --output",
        )
    ledger = read_ledger(output)
    changed = [name for name, value in ledger.asked if value != getattr(spec, name)]
    if changed:
        raise UserError(
            f"{output} was made with other settings",
            why=f"different: {', '.join(changed)}",
            fix="give the same arguments, or start anew in another --output",
        )
    return ledger


def _run_stage(stage: Stage, ledger: Ledger, output: Path, line: ProgressLine) -> Ledger:
    """Run one stage to its end, or go on with the run that an earlier try has left."""
    run = _left_over(stage, ledger) or stages.start(stage, ledger.asked, ledger.made)
    _get_ready(ledger, STAGES[STAGES.index(stage) + 1 :])
    ledger = ledger.with_stage(stage, Made(run=str(run.root)), output)
    try:
        result = api.finish(run, lambda now: line.show(stage, now))
    except (UserError, KeyboardInterrupt):
        line.end()
        raise
    seconds = round(api.status(run).elapsed_seconds or 0.0, 1)
    line.finished(stage, seconds)
    return ledger.with_stage(stage, Made(run=str(run.root), seconds=seconds, result=result), output)


def _get_ready(ledger: Ledger, later: Sequence[Stage]) -> None:
    """Let the next stage's process import while the one before works."""
    following = next((stage for stage in later if not ledger.finished(stage)), None)
    if following:
        standby.prepare(stages.KIND[following])


def _left_over(stage: Stage, ledger: Ledger) -> RunPaths | None:
    """The run of an earlier try, if it is alive or done; a training goes on from a checkpoint."""
    made = ledger.made.get(stage)
    if made is None or made.result is not None or not Path(made.run).is_dir():
        return None
    run = RunPaths(Path(made.run))
    if api.status(run).state in (*ACTIVE, State.SUCCEEDED):
        return run
    if stage == "train" and lifecycle.resumable(run):
        return lifecycle.resume_training(run)
    return None


def _deliver(stage: Stage, ledger: Ledger, output: Path) -> None:
    """Put what a stage made into the output folder, unless it is there."""
    made = ledger.made[stage]
    _point(output / "runs" / stage, Path(made.run))
    if stage == "dataset":
        _second(Path(made["dataset"]), output / "dataset")
    elif stage == "merge":
        _second(Path(made["adapter"]), output / "adapter")
        _second(Path(made["merged"]), output / "merged")
    elif stage == "evaluate" and not (output / "scorecard.json").is_file():
        for name in ("replies", "report"):
            source = Path(made[name])
            (output / source.name).unlink(missing_ok=True)  # of a delivery that was interrupted
            fsio.link_or_copy(source, output / source.name)
        fsio.write_json(output / "scorecard.json", _card(ledger))


def _point(link: Path, run: Path) -> None:
    """``runs/STAGE`` is a link: a run's folder has one place, since it can be at work."""
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    os.symlink(run, link)


def _second(source: Path, target: Path) -> None:
    """A folder's files at a second place; whole, or not at all."""
    if target.exists() or not source.is_dir():
        return
    with staging.staged(target) as folder:
        shutil.copytree(source, folder, copy_function=fsio.link_or_copy, dirs_exist_ok=True)


def _card(ledger: Ledger) -> dict[str, Any]:
    """The scorecard, with the time of each stage and the proof of the merge."""
    made = ledger.made
    card: dict[str, Any] = fsio.read_json(Path(made["evaluate"]["scorecard"]))
    merge = made["merge"]["seconds"]
    card["seconds"] = {
        "dataset": made["dataset"].seconds,
        "train": made["train"].seconds,
        "sweep": made["sweep"].seconds,
        "merge": sum(merge.values()),  # converting and the proof are within it
        "evaluate": made["evaluate"].seconds,
    }
    card["merge_check"] = made["merge"]["proof"]
    return card
