"""The learning rate of each step as XTuner's schedule should give it, worked out by hand."""

from __future__ import annotations

import math


def lr_at_iteration(iteration: int, *, lr: float, warmup_iters: int, max_iters: int) -> float:
    """Learning rate that is in force during micro-batch ``iteration`` (from 0).

    Linear warm-up lr * (i + 1) / warmup_iters, then half a cosine to zero. mmengine steps its
    schedulers after every micro-batch, so both pieces are written in micro-batches.
    """
    if iteration < warmup_iters:
        return lr * (iteration + 1) / warmup_iters
    progress = (iteration - warmup_iters) / (max_iters - warmup_iters)
    return lr * (1 + math.cos(math.pi * progress)) / 2


def lr_plan(*, lr: float, steps: int, warmup_steps: int, accumulation: int) -> list[float]:
    """Learning rate applied by each optimizer step (length ``steps``).

    The optimizer steps at the last micro-batch of each group, so step k uses the rate of
    micro-batch (k + 1) * accumulation - 1: the warm-up is lr * (k + 1) / warmup_steps exactly.
    """
    return [
        lr_at_iteration(
            (step + 1) * accumulation - 1,
            lr=lr,
            warmup_iters=warmup_steps * accumulation,
            max_iters=steps * accumulation,
        )
        for step in range(steps)
    ]
