"""Before Start: what the run will do and cost, and everything that would go wrong, at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from core import fsio, paths
from core.conversation import Conversation
from core.errors import UserError, UserErrors
from core.models import catalog, device
from core.models.device import Device
from core.models.xtuner_template import XTunerTemplate
from core.training import (
    base,
    budget,
    checkpoints,
    config,
    cost,
    deepspeed,
    rawconfig,
    recipe,
    record,
    rows,
)
from core.training.spec import TrainSpec

T = TypeVar("T")
#: Start-up: importing XTuner, loading and quantizing the base, tokenizing.
STARTUP_SECONDS = 20.0


@dataclass(frozen=True)
class Estimate:
    """A number that is not measured yet, and what it rests on."""

    value: float
    basis: str


@dataclass(frozen=True)
class Preflight:
    """The answer to "what happens if I press Start". Counts are of the whole run."""

    spec: TrainSpec
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
    report = Preflight(spec, steps=spec.steps, problems=problems)
    loaded = _collect(problems, lambda: _read(spec))
    opened = _collect(problems, lambda: _open(spec))
    if opened is not None:
        shape, template = opened
        report = _with_model(report, shape, disk or paths.runs_dir())
        if loaded:
            report = _with_rows(report, found, shape, loaded, template)
        report = replace(report, warnings=[*report.warnings, *base.warnings(template)])
    if spec.resume_from is not None:
        problems += _collect(problems, lambda: _resume_problems(spec)) or []
    return report


def _collect(problems: list[UserError], look: Callable[[], T]) -> T | None:
    """What ``look`` finds; a UserError joins the problems."""
    try:
        return look()
    except UserError as error:
        problems.append(error)
        return None


def _read(spec: TrainSpec) -> list[Conversation]:
    loaded = rows.read_rows(Path(spec.dataset))
    rows.data_pattern(paths.DatasetPaths(Path(spec.dataset)).train.resolve())
    return loaded


def _open(spec: TrainSpec) -> tuple[cost.Shape, XTunerTemplate]:
    model = catalog.resolve(spec.model).path
    return cost.shape_of(model), base.require_trainable(model)


def _resume_problems(spec: TrainSpec) -> list[UserError]:
    source = checkpoints.require_own(Path(str(spec.resume_from)))
    return record.resume_problems(spec, source)


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
            rawconfig.check_raw(spec.config_text)
        else:
            config.stock_source(spec.stock_config)
    except UserError as error:
        return [error]
    return []


def _with_model(report: Preflight, shape: cost.Shape, disk: Path) -> Preflight:
    """Disk and trained parameters."""
    spec = report.spec
    needed, free = cost.disk_bytes(shape, spec), fsio.free_bytes(disk)
    if free < needed:
        report.problems.append(
            UserError(
                "not enough disk space for the checkpoints",
                why=f"{fsio.human_bytes(needed)} needed in {disk}, {fsio.human_bytes(free)} free",
                fix="delete old runs, or save fewer checkpoints",
                where="checkpoint_every",
            )
        )
    count = -(-spec.steps // spec.checkpoint_every)
    one = fsio.human_bytes(cost.checkpoint_bytes(shape, spec))
    return replace(
        report,
        disk=Estimate(needed, f"{count} checkpoints of {one} (LoRA and Adam), and a fifth"),
        trained_parameters=shape.lora(spec.lora_r),
        template_parity=True,
        warnings=[*filter(None, [_rate_warning(spec, shape)])],
    )


def _rate_warning(spec: TrainSpec, shape: cost.Shape) -> str:
    scale = spec.lora_alpha / spec.lora_r
    return recipe.too_high(spec.lr, scale, shape.parameters, spec.quantize)


def _with_rows(
    report: Preflight,
    found: Device,
    shape: cost.Shape,
    loaded: list[Conversation],
    template: XTunerTemplate,
) -> Preflight:
    """What becomes of the rows, how often they are seen, and what that costs."""
    spec = report.spec
    stats = rows.measure(loaded, template, spec.max_length)
    odd = rows.differing(loaded, template)
    memory = _memory(spec, shape, stats)
    report.problems.extend(_row_problems(stats, odd))
    report.problems.extend(_memory_problems(spec, shape, stats.longest, found))
    usable = len(stats.lengths)
    exposures = spec.steps * spec.rows_per_step / usable if usable else 0.0
    return replace(
        report,
        rows=stats.rows,
        exposures=exposures,
        tokens_kept=stats.kept,
        tokens_dropped=stats.tokens - stats.kept,
        tokens_supervised=stats.supervised,
        rows_cut=stats.cut_rows,
        rows_unusable=stats.unusable,
        template_parity=not odd,
        warnings=[*report.warnings, *_row_warnings(spec, stats, exposures)],
        memory=memory,
        seconds=_seconds(spec, found, shape, stats),
    )


def _row_problems(stats: rows.RowStats, odd: list[str]) -> Iterator[UserError]:
    if not stats.lengths:
        yield UserError(
            "no row has a supervised token",
            fix="raise the longest row, or mend the dataset",
            where="max_length",
        )
    if odd:
        yield UserError(
            f"{len(odd)} rows become other tokens in XTuner than in chat, first {odd[0]!r}",
            why="white space at the edge of a turn joins the template's own",
            fix="strip the turns on the Dataset page",
            where="dataset",
        )


def _memory_problems(
    spec: TrainSpec, shape: cost.Shape, longest: int, found: Device
) -> Iterator[UserError]:
    """A run that does not fit, and whether the settings or the model must change."""
    needed = cost.memory_bytes(shape, spec, longest)
    if needed <= found.memory_bytes:
        return
    thrifty = {"batch_size": 1, "hold_weights": False, "activation_checkpointing": True}
    least = cost.memory_bytes(shape, spec.changed(**thrifty, quantize="nf4"), longest)
    fix = "one row a micro-batch, the base not held, activations recomputed"
    if least > found.memory_bytes:
        fix = f"a smaller model: this one takes {fsio.human_bytes(least)} at the least"
    yield UserError(
        "the run does not fit in memory",
        why=f"about {fsio.human_bytes(needed)} needed, "
        f"{fsio.human_bytes(found.memory_bytes)} there",
        where="batch_size",
        fix=fix,
    )


def _row_warnings(spec: TrainSpec, stats: rows.RowStats, exposures: float) -> list[str]:
    warnings = []
    if exposures > budget.EXPOSURES[1]:
        warnings.append(f"every row is seen {exposures:.1f} times: general ability may suffer")
    if 0 < exposures < 1:
        warnings.append(f"only {exposures:.0%} of the rows are ever seen")
    if stats.cut_rows:
        warnings.append(f"{stats.cut_rows} rows lose their tail at {spec.max_length} tokens")
    return warnings


def _memory(spec: TrainSpec, shape: cost.Shape, stats: rows.RowStats) -> Estimate:
    length = min(stats.longest, spec.max_length)
    basis = (
        f"weights, LoRA with Adam, activations of {spec.batch_size} rows of {length} tokens"
        if spec.world_size == 1
        else f"on each of {spec.world_size} GPUs: weights, LoRA with Adam, activations of "
        f"{spec.batch_size} rows of {length} tokens"
    )
    return Estimate(cost.memory_bytes(shape, spec, stats.longest), basis)


def _seconds(spec: TrainSpec, found: Device, shape: cost.Shape, stats: rows.RowStats) -> Estimate:
    mean = stats.kept / max(1, len(stats.lengths))
    rate = cost.tokens_per_second(found, shape, spec)
    tokens = spec.steps * spec.rows_per_step / spec.world_size * mean
    return Estimate(
        STARTUP_SECONDS + tokens / rate,
        f"{mean:.0f} tokens a row at about {rate:.0f} tokens/s on "
        f"{found.name}; the first steps give a better figure",
    )
