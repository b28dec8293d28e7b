"""Job kind ``train``: write the config, train, and check that the checkpoints are really there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from core import seal
from core.conversation import OnProgress
from core.errors import UserError
from core.inference.load import load_tokenizer
from core.models.xtuner_template import XTunerTemplate
from core.paths import RunPaths
from core.training import checkpoints, config, deepspeed, entry, launch, record, rows
from core.training.spec import TrainSpec

Spec = TrainSpec


def check(spec: TrainSpec) -> None:
    """Raises UserErrors with everything that would go wrong, at once."""
    from core.training.preflight import preflight

    preflight(spec).check()


def run(spec: TrainSpec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Train, in this process or under torchrun.

    Returns:
        ``checkpoints``: [{"step", "path"}] that open, oldest first; ``final``: the last one;
        ``steps``; ``tokens`` (real tokens seen by this call); ``lr`` (applied, by optimizer
        step of this call); ``figures`` (of its looks); ``config``.

    Raises:
        UserError: the spec cannot work, resuming would not continue the same run, or the planned
            final checkpoint is missing or torn although XTuner returned.
    """
    on_progress("prepare", 0, 0)
    spec.check()
    run.work.mkdir(parents=True, exist_ok=True)
    entry.prepare_environment(spec, run.work)
    inputs = _inputs(spec, run)
    resume = _resume(spec, run)
    if spec.deepspeed:
        deepspeed.write(spec, run.work)
    seal.seal(config.write_config(spec, run.config, inputs))
    record.write(spec, run, resume)
    on_progress("load the model", 0, 0)
    if spec.world_size > 1:
        counted = launch.torchrun(spec, run)
    else:
        counted = entry.train(spec, run.config, run.work, resume=resume, on_progress=on_progress)
    shutil.rmtree(run.work / "datasets_cache", ignore_errors=True)
    found = checkpoints.scan(run.work, spec.accumulation)
    final = next((c for c in found if c.step == spec.steps), None)
    if final is None or not final.whole:
        raise UserError(
            f"training ended without its last checkpoint (step {spec.steps})",
            why=final.problem if final else "XTuner returned before the last step",
            fix="look at the end of the log; resume from the newest whole checkpoint",
        )
    return {
        "checkpoints": [{"step": c.step, "path": str(c.path)} for c in found if c.whole],
        "final": str(final.path),
        "steps": spec.steps,
        "config": str(run.config),
        **counted,
    }


def _inputs(spec: TrainSpec, run: RunPaths) -> config.ConfigInputs:
    """Config inputs; rows are rewritten where the chat template asks for it."""
    inputs = config.resolve_inputs(spec)
    loaded = rows.read_rows(Path(spec.dataset))
    template = XTunerTemplate(load_tokenizer(inputs.model_path))
    data = rows.write_for_xtuner(loaded, template, run.work / "train_as_rendered.jsonl")
    if data is None:
        return inputs
    return config.ConfigInputs(
        inputs.model_path, data.resolve(), inputs.prompt_template, inputs.device
    )


def _resume(spec: TrainSpec, run: RunPaths) -> Path | None:
    """The checkpoint to go on from, copied beside its random state into this run."""
    if spec.resume_from is None:
        return None
    source = checkpoints.require_own(Path(spec.resume_from))
    record.require_same(spec, source)
    return checkpoints.adopt(source, run.work)
