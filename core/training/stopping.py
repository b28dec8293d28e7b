"""When a checkpoint is due, and a gentle stop: one more is written first, so no step is lost."""

from __future__ import annotations

import signal
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.hooks import CheckpointHook, Hook


class Due:
    """Which micro-batches end with a checkpoint: one object for all hooks that write or look.

    Args:
        interval: micro-batches between checkpoints.
        accumulation: micro-batches of an optimizer step.
    """

    def __init__(self, interval: int, accumulation: int) -> None:
        self.interval = interval
        self.accumulation = accumulation
        self.stopping = False

    def planned(self, runner: Any) -> bool:
        """Whether the plan has a checkpoint after this micro-batch."""
        done = runner.iter + 1
        return done % self.interval == 0 or done == runner.max_iters

    def now(self, runner: Any) -> bool:
        """Whether one is written after this micro-batch, planned or because training stops."""
        return self.stopping or self.planned(runner)

    def step(self, runner: Any) -> int:
        """Optimizer steps done when this micro-batch is."""
        return int(runner.iter + 1) // self.accumulation


class StopHook(Hook):
    """On SIGTERM, which is how a run is stopped, finish the step, write a checkpoint, and end.

    Several processes agree on the step: one that heard it is enough.
    """

    priority = "VERY_HIGH"  # decides before any hook of the same micro-batch writes

    def __init__(self, due: Due) -> None:
        self.due = due
        self._asked = False
        self._before: Any = None

    def before_train(self, runner: Any) -> None:
        self._before = signal.signal(signal.SIGTERM, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self._asked = True

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if self.due.stopping:
            self.after_train(runner)
            print(f"stopped after step {runner.iter // self.due.accumulation}", flush=True)
            raise SystemExit(0)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if (runner.iter + 1) % self.due.accumulation == 0 and self._wanted():
            self.due.stopping = True
            for hook in runner.hooks:
                if isinstance(hook, CheckpointHook):
                    hook.interval = 1

    def _wanted(self) -> bool:
        asked = torch.tensor(int(self._asked))
        all_reduce(asked, "max")
        return bool(asked)

    def after_train(self, runner: Any) -> None:
        signal.signal(signal.SIGTERM, self._before)
