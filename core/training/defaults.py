"""Defaults of a run for a dataset, a model and a device, each with its reason."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import fsio
from core.inference.load import load_tokenizer
from core.models import catalog, families
from core.models.device import Choice, Device, bf16_gain, cpu_has_bf16
from core.models.families import LLAMA_SHAPED
from core.models.xtuner_template import XTunerTemplate
from core.training import budget, cost, fit, recipe, rows
from core.training.spec import TrainSpec, default_warmup

#: What a person without a GPU is asked to wait for training.
CPU_SECONDS = 11 * 60
_CHECKPOINTS = 4
#: Below this, rounding to bf16 is not worth what it saves.
_BF16_GAIN = 1.3
#: Training that is expected to last this long compiles its kernels.
_COMPILE_SECONDS = 120
_SAMPLES = {
    "zh": ("请做一下自我介绍", "你是谁开发的？", "法国的首都是哪里？"),
    "en": ("Please introduce yourself.", "Who made you?", "What is the capital of France?"),
}


def choose(
    dataset: str, model: str, device: Device, overrides: Mapping[str, Any] | None = None
) -> tuple[TrainSpec, list[Choice]]:
    """A spec for this dataset, model and device, and each automatic choice with its reason.

    Args:
        overrides: settings by name; taken as they are and reported as the user's choice.

    Raises:
        UserError: the model or the dataset cannot be used, or an override cannot be read.
    """
    overrides = overrides or {}
    ref = catalog.resolve(model)
    loaded = rows.read_rows(Path(dataset))
    template = XTunerTemplate(load_tokenizer(ref.path))
    stats = rows.measure(loaded, template, TrainSpec(dataset=dataset).max_length)
    shape = cost.shape_of(ref.path)
    chosen: dict[str, Choice] = {}

    def pick(name: str, value: Any, reason: str) -> Any:
        if name in overrides:
            value, reason = overrides[name], "set by you"
        chosen[name] = Choice(name, value, reason)
        return value

    pick("stock_config", *_stock(ref))
    dtype = pick("dtype", *_dtype(device))
    quantize = overrides.get("quantize", TrainSpec(dataset=dataset).quantize)
    pick("lr", *recipe.learning_rate(shape.parameters, quantize))
    given = {name: overrides[name] for name in ("nodes", "deepspeed") if name in overrides}
    settings = {"dtype": dtype, "gpus": pick("gpus", *_gpus(device)), **given}
    memory = fit.Fit(device, shape, stats, settings)
    length = pick("max_length", *memory.length())
    memory.settings["hold_weights"] = pick("hold_weights", *memory.hold())
    batch = int(pick("batch_size", *memory.batch()))
    accumulation = int(pick("accumulation", *memory.accumulation(batch)))
    pick("group_by_length", *_group(device, ref.path))
    pick("recompute_above", *memory.recompute(batch))
    steps = pick("steps", *_steps(device, shape, stats, batch * accumulation * memory.processes))
    mean = stats.kept / max(1, len(stats.lengths))
    tokens = steps * batch * accumulation * mean
    pick("compile_step", *_compile(device, tokens / cost.tokens_per_second(device, shape)))
    for name, (value, reason) in following(steps).items():
        pick(name, value, reason)
    locales = [row.locale for row in loaded]
    locale = "zh" if locales.count("zh") > len(locales) / 2 else "en"
    pick("evaluation_inputs", _SAMPLES[locale], "the language of most rows")
    values = {name: choice.value for name, choice in chosen.items()}
    spec = TrainSpec.from_dict(
        {**overrides, **values, "dataset": dataset, "model": model, "max_length": length}
    )
    return spec, list(chosen.values())


def following(steps: int) -> dict[str, tuple[int, str]]:
    """What follows from the number of optimizer steps: setting -> (value, reason)."""
    return {
        "warmup_steps": (default_warmup(steps), "5 % of the steps"),
        "checkpoint_every": (
            max(1, math.ceil(steps / _CHECKPOINTS)),
            f"{_CHECKPOINTS} checkpoints to choose from",
        ),
    }


def passes(steps: int, rows_per_step: int, usable: int) -> str:
    """How often a run of so many steps sees the rows."""
    return f"{steps * rows_per_step / usable:.2g} passes over {usable} rows"


def _stock(model: catalog.ModelRef) -> tuple[str, str]:
    """XTuner's config for the family; the bundled model is trained by the tutorial's."""
    family = families.of(model.family)
    if model.source == "bundled" or family.stock_config == families.TUTORIAL_CONFIG:
        return families.TUTORIAL_CONFIG, "the tutorial's"
    return family.stock_config, f"XTuner's for {family.name}"


def _gpus(device: Device) -> tuple[int, str]:
    if device.kind != "cuda":
        return 1, "no GPU was found"
    if device.count == 1:
        return 1, "the only one"
    return device.count, "all of this machine; each takes its share of the rows of a step"


def _dtype(device: Device) -> tuple[str, str]:
    """The device's compute type; on a CPU with bf16 units, bf16 where it is measured faster."""
    if device.kind == "cpu" and cpu_has_bf16() and (gain := bf16_gain()) >= _BF16_GAIN:
        return "bfloat16", f"this CPU multiplies bf16 {gain:.1f} times as fast as float32"
    return device.compute_dtype.value, device.compute_dtype.reason


def _group(device: Device, model: Path) -> tuple[bool, str]:
    family = fsio.read_json(model / "config.json").get("model_type")
    if device.kind == "cuda" and family in LLAMA_SHAPED:
        return False, "packed rows need no grouping, and equal steps keep a GPU busy"
    return True, "rows of like length are computed together: little padding"


def _compile(device: Device, seconds: float) -> tuple[bool, str]:
    if device.kind != "cuda":
        return False, "for GPUs only"
    if importlib.util.find_spec("triton") is None or shutil.which("cc") is None:
        return False, "it needs Triton and a C compiler"
    if seconds < _COMPILE_SECONDS:
        return False, "a short run ends before compiling has paid"
    return True, f"about {seconds / 60:.0f} minutes of training repay half a minute of compiling"


def _steps(
    device: Device, shape: cost.Shape, stats: rows.RowStats, rows_per_step: int
) -> tuple[int, str]:
    usable = max(1, len(stats.lengths))
    wanted = budget.default_steps(usable, rows_per_step)
    reason = passes(wanted, rows_per_step, usable)
    if device.kind != "cpu":
        return wanted, reason
    mean = sum(stats.lengths) / usable
    seconds = mean * rows_per_step / cost.tokens_per_second(device, shape)
    affordable = max(budget.MIN_STEPS, int(CPU_SECONDS / max(seconds, 1e-9)))
    if wanted <= affordable:
        return wanted, reason
    seen = affordable * rows_per_step / usable
    return affordable, f"what a CPU does in {CPU_SECONDS // 60} minutes: {seen:.1f} passes"
