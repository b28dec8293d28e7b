"""Before Start: what the run will do and cost, and everything that would go wrong, at once."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core import fsio, paths
from core.errors import UserError, UserErrors
from core.models import catalog, device
from core.models.device import Device
from core.models.xtuner_template import XTunerTemplate
from core.training import base, budget, checkpoints, config, cost, deepspeed, record, rows
from core.training.spec import TrainSpec

#: Start-up: importing XTuner, loading and quantizing the base, tokenizing.
_STARTUP_SECONDS = 20.0


@dataclass(frozen=True)
class Estimate:
    """A number that is not measured yet, and what it rests on."""

    value: float
    basis: str


@dataclass(frozen=True)
class Preflight:
    """The answer to "what happens if I press Start". Counts are of the whole run."""

    steps: int = 0
    rows: int = 0
    exposures: float = 0.0
    tokens_kept: int = 0
    tokens_dropped: int = 0
    tokens_supervised: int = 0
    rows_cut: int = 0
    rows_unusable: int = 0
    template_parity: bool = False
    memory: Estimate | None = None
    seconds: Estimate | None = None
    disk: Estimate | None = None
    trained_parameters: int = 0
    problems: list[UserError] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def check(self) -> Preflight:
        """Return self; raise UserErrors with all problems."""
        if self.problems:
            raise UserErrors(self.problems, "this run cannot start")
        return self


def preflight(
    spec: TrainSpec, found: Device | None = None, *, disk: Path | None = None
) -> Preflight:
    """Look at everything a run needs; never raises UserError, collects instead."""
    found = found or device.describe()
    problems = [*spec.problems(), *_device_problems(spec, found), *_config_problems(spec)]
    facts: dict[str, Any] = {"steps": spec.steps, "warnings": []}
    try:
        loaded = rows.read_rows(Path(spec.dataset))
        rows.data_pattern(paths.DatasetPaths(Path(spec.dataset)).train.resolve())
    except UserError as error:
        loaded = []
        problems.append(error)
    try:
        model = catalog.resolve(spec.model).path
        template = base.require_trainable(model)
        facts |= _model_facts(spec, found, model, disk or paths.runs_dir(), problems)
        if loaded:
            facts |= _data_facts(spec, found, model, loaded, template, problems, facts)
        facts["warnings"] = [*facts["warnings"], *base.warnings(template)]
    except UserError as error:
        problems.append(error)
    if spec.resume_from is not None:
        try:
            source = checkpoints.require_own(Path(spec.resume_from))
            problems += record.resume_problems(spec, source)
        except UserError as error:
            problems.append(error)
    return Preflight(problems=problems, **facts)


def _device_problems(spec: TrainSpec, found: Device) -> list[UserError]:
    problems = []
    if spec.deepspeed and (why := deepspeed.unavailable(found)):
        problems.append(
            UserError(
                f"DeepSpeed {spec.deepspeed} cannot run here",
                why=why,
                fix="choose no DeepSpeed",
                where="deepspeed",
            )
        )
    if spec.gpus > 1 and spec.gpus > (found.count if found.kind == "cuda" else 0):
        problems.append(
            UserError(
                f"{spec.gpus} GPUs asked for, {found.count if found.kind == 'cuda' else 0} found",
                fix="set it to what this machine has",
                where="gpus",
            )
        )
    if found.kind == "cpu" and spec.nodes > 1:
        problems.append(UserError("several nodes need GPUs", fix="set nodes to 1", where="nodes"))
    if found.kind == "cpu" and spec.dtype != "float32" and not device.cpu_has_bf16():
        problems.append(
            UserError(
                f"{spec.dtype} on this CPU",
                why="it has no such units: 40 times slower than float32",
                fix="choose float32",
                where="dtype",
            )
        )
    if found.kind == "cpu" and spec.dtype == "float16":
        problems.append(
            UserError("float16 training needs a GPU", fix="choose float32", where="dtype")
        )
    if spec.tensorboard and importlib.util.find_spec("tensorboard") is None:
        problems.append(
            UserError(
                "TensorBoard files asked for, but tensorboard is not installed",
                fix="pip install tensorboard, or leave it off",
                where="tensorboard",
            )
        )
    return problems


def _config_problems(spec: TrainSpec) -> list[UserError]:
    try:
        if spec.config_text is not None:
            config.check_raw(spec.config_text)
        else:
            config.stock_source(spec.stock_config)
    except UserError as error:
        return [error]
    return []


def _model_facts(
    spec: TrainSpec, found: Device, model: Path, disk: Path, problems: list[UserError]
) -> dict[str, Any]:
    shape = cost.shape_of(model)
    needed = cost.disk_bytes(shape, spec)
    free = fsio.free_bytes(disk)
    if free < needed:
        problems.append(
            UserError(
                "not enough disk space for the checkpoints",
                why=f"{fsio.human_bytes(needed)} needed in {disk}, {fsio.human_bytes(free)} free",
                fix="delete old runs, or save fewer checkpoints",
                where="checkpoint_every",
            )
        )
    count = -(-spec.steps // spec.checkpoint_every)
    one = fsio.human_bytes(cost.checkpoint_bytes(shape, spec))
    return {
        "disk": Estimate(needed, f"{count} checkpoints of {one} (LoRA and Adam), and a fifth"),
        "trained_parameters": shape.lora(spec.lora_r),
        "template_parity": True,
    }


def _data_facts(
    spec: TrainSpec,
    found: Device,
    model: Path,
    loaded: list[Any],
    template: XTunerTemplate,
    problems: list[UserError],
    facts: dict[str, Any],
) -> dict[str, Any]:
    stats = rows.measure(loaded, template, spec.max_length)
    shape = cost.shape_of(model)
    warnings: list[str] = []
    usable = len(stats.lengths)
    if not usable:
        problems.append(
            UserError(
                "no row has a supervised token",
                fix="raise the longest row, or mend the dataset",
                where="max_length",
            )
        )
    odd = rows.differing(loaded, template)
    if odd:
        problems.append(
            UserError(
                f"{len(odd)} rows become other tokens in XTuner than in chat, first {odd[0]!r}",
                why="white space at the edge of a turn joins the template's own",
                fix="strip the turns on the Dataset page",
                where="dataset",
            )
        )
    exposures = spec.steps * spec.rows_per_step / usable if usable else 0.0
    if exposures > budget.EXPOSURES[1]:
        warnings.append(f"every row is seen {exposures:.1f} times: general ability may suffer")
    if 0 < exposures < 1:
        warnings.append(f"only {exposures:.0%} of the rows are ever seen")
    if stats.cut_rows:
        warnings.append(f"{stats.cut_rows} rows lose their tail at {spec.max_length} tokens")
    memory = cost.memory_bytes(shape, spec, stats.longest)
    if memory > found.memory_bytes:
        problems.append(
            UserError(
                "the run does not fit in memory",
                why=f"about {fsio.human_bytes(memory)} needed, "
                f"{fsio.human_bytes(found.memory_bytes)} there",
                where="batch_size",
                fix="fewer rows a micro-batch, or recompute the long ones",
            )
        )
    mean = stats.kept / usable if usable else 0.0
    rate = cost.tokens_per_second(found, shape, spec)
    seconds = _STARTUP_SECONDS + spec.steps * spec.rows_per_step / spec.world_size * mean / rate
    return {
        "rows": stats.rows,
        "exposures": exposures,
        "tokens_kept": stats.kept,
        "tokens_dropped": stats.tokens - stats.kept,
        "tokens_supervised": stats.supervised,
        "rows_cut": stats.cut_rows,
        "rows_unusable": stats.unusable,
        "template_parity": not odd,
        "warnings": warnings,
        "memory": Estimate(
            memory,
            f"weights, LoRA with Adam, activations of {spec.batch_size} "
            f"rows of {min(stats.longest, spec.max_length)} tokens",
        ),
        "seconds": Estimate(
            seconds,
            f"{mean:.0f} tokens a row at about {rate:.0f} tokens/s on "
            f"{found.name}; the first steps give a better figure",
        ),
    }
