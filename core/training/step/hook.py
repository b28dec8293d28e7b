"""The mmengine hook that puts held weights and the fused step into XTuner's model."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log

from core.training.spec import TrainSpec
from core.training.step import pointwise
from core.training.step.held import hold, leave_file, take_any_type
from core.training.step.llama_loss import FusedStep, unsupported


def supervised_finetune(runner: Any) -> Any:
    """XTuner's model below whatever DDP or DeepSpeed wrapped around it."""
    model = runner.model
    while "llm" not in model._modules:  # not hasattr: DeepSpeed's wrapper passes attributes on
        model = model.module if "module" in model._modules else model.model
    return model


class StepHook(Hook):
    """Changes the model once, after a resume has loaded its weights and before the first step.

    ZeRO-3 keeps XTuner's own step: no process has whole weights to hold or to fuse.
    """

    priority = "VERY_HIGH"

    def __init__(self, spec: TrainSpec) -> None:
        self.spec = spec

    def before_train(self, runner: Any) -> None:
        if self.spec.shards_weights:
            return
        model, spec = supervised_finetune(runner), self.spec
        dtype = getattr(torch, spec.dtype)
        leave_file(model.llm)
        reason = "it was asked for" if not spec.fused_step else unsupported(model.llm)
        reason = reason or ("the loss is not XTuner's" if spec.anchored else "")
        if reason and spec.deepspeed:  # XTuner's step casts nothing, DeepSpeed all but NF4
            print_log(f"XTuner's own step and NF4 as it is are used: {reason}", "current")
            return
        take_any_type(model.llm)
        if spec.hold_weights:
            print_log(f"{hold(model.llm, dtype)} dequantized layers are held", "current")
        if reason:
            print_log(f"XTuner's own step is used: {reason}", "current")
            return
        model.compute_loss = FusedStep(
            model.llm,
            dtype,
            run=pointwise.compiled() if spec.compile_step else pointwise.EAGER,
            recompute_above=0 if spec.activation_checkpointing else spec.recompute_above or None,
            keep_padding=not spec.pack_rows,
        )
