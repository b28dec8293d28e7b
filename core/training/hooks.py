"""mmengine hooks: metrics, figures, sample replies, random state; for the training process only."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_reduce, barrier, get_rank
from mmengine.hooks import Hook

from core import fsio
from core.conversation import Message, OnProgress
from core.inference import decoding
from core.inference.resident import Resident
from core.inference.settings import GenerationSettings
from core.jobs.records import emit
from core.training import checkpoints
from core.training.figures import Figures
from core.training.health import Health
from core.training.launch import watched
from core.training.look import Look
from core.training.step.hook import supervised_finetune
from core.training.stopping import Due

#: Longest sample reply in tokens: enough to see a persona, short enough not to slow training.
SAMPLE_TOKENS = 48


def random_state_path(work: Path, iteration: int, rank: int) -> Path:
    """Where the random state after ``iteration`` micro-batches lies, one file a process."""
    return work / "random_state" / f"iter_{iteration}" / f"rank_{rank}.pt"


class MetricsHook(Hook):
    """One line per optimizer step: what the optimizer really did, not what was planned.

    ``loss`` is the mean over the step's micro-batches of all processes; ``lr`` the rate the
    optimizer applied; ``tokens_per_s`` counts real tokens (no padding) of all processes;
    ``memory_bytes`` is the peak so far of the process with the highest (GPU memory on a GPU, else
    resident memory).
    """

    priority = "VERY_HIGH"

    def __init__(
        self,
        accumulation: int,
        steps: int,
        health: Health,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.accumulation = accumulation
        self.health = health
        self.steps = steps
        self.on_progress = on_progress
        self.lr: list[float] = []
        self.tokens = 0
        self._losses: list[Any] = []
        self._step_tokens = 0
        self._started = 0.0

    def before_train(self, runner: Any) -> None:
        if self.on_progress:
            self.on_progress("train", runner.iter // self.accumulation, self.steps)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter % self.accumulation == 0:
            self._losses, self._step_tokens = [], 0
            self._started = time.monotonic()
        self._lr_now = _learning_rate(runner)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self._losses.append(outputs["loss"].detach())
        self._step_tokens += int(data_batch["data"]["attention_mask"].sum())
        if (runner.iter + 1) % self.accumulation:
            return
        step = (runner.iter + 1) // self.accumulation
        loss = over_all(torch.stack(self._losses).mean().float(), "mean")
        seconds = time.monotonic() - self._started
        tokens = int(over_all(torch.tensor(self._step_tokens), "sum"))
        memory = int(over_all(torch.tensor(_peak_memory()), "max"))
        self.tokens += tokens
        self.lr.append(self._lr_now)
        if watched():
            emit(
                {
                    "type": "metric",
                    "step": step,
                    "max_steps": self.steps,
                    "loss": loss,
                    "nan": not math.isfinite(loss),
                    "lr": self._lr_now,
                    "grad_norm": _grad_norm(runner),
                    "s_per_step": seconds,
                    "tokens_per_s": tokens / max(seconds, 1e-9),
                    "memory_bytes": memory,
                }
            )
        if self.on_progress:
            self.on_progress("train", step, self.steps)
        self.health.loss(loss, step)


def over_all(value: torch.Tensor, how: str) -> float:
    """A figure over all processes: their "mean", "sum" or "max"."""
    all_reduce(value, how)
    return float(value)


def _learning_rate(runner: Any) -> float:
    lr = runner.optim_wrapper.get_lr()
    return float(next(iter(lr.values()))[0])


def _grad_norm(runner: Any) -> float | None:
    """Norm before clipping, as mmengine or DeepSpeed measured it in the last optimizer step."""
    engine = getattr(runner.model, "model", None)
    if engine is not None and hasattr(engine, "get_global_grad_norm"):
        norm = engine.get_global_grad_norm()
        return None if norm is None else float(norm)
    scalars = runner.message_hub.log_scalars
    return float(scalars["train/grad_norm"].current()) if "train/grad_norm" in scalars else None


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kB on Linux, bytes on macOS


class RecomputeHook(Hook):
    """Recompute activations in long micro-batches only.

    Rows are grouped by length, so a few micro-batches are much longer than the others and alone
    decide the peak memory. The result is the same to the bit: recomputing repeats the same
    operations, with dropout's random state restored.
    """

    priority = "VERY_HIGH"

    def __init__(self, above: int) -> None:
        self.above = above
        self._on = False

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        wanted = data_batch["data"]["input_ids"].numel() > self.above
        if wanted == self._on:
            return
        base = supervised_finetune(runner).llm.get_base_model()
        if wanted:
            # The reentrant kind needs inputs with gradients, which a frozen base does not have.
            base.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            base.gradient_checkpointing_disable()
        self._on = wanted


class RandomStateHook(Hook):
    """Save the random states beside each checkpoint; restore them when a run goes on.

    mmengine restores weights, optimizer, schedulers and data order, but no random state, so
    dropout differs after a resume. Each process has its own state and mmengine saves only the
    first one's checkpoint, hence files of our own: plain tensors and numbers, read with
    ``weights_only``. Written before the checkpoint of the same step (CheckpointHook runs later),
    so a checkpoint never lacks its random state.
    """

    priority = "LOW"

    def __init__(self, work: Path, due: Due) -> None:
        self.work = work
        self.due = due
        self._first = True

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        # Not earlier: skipping the data that was already trained on may draw random numbers.
        if self._first and runner.iter > 0:
            path = random_state_path(self.work, runner.iter, get_rank())
            restore_random_state(torch.load(path, weights_only=True))
        self._first = False

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.due.now(runner):
            path = random_state_path(self.work, runner.iter + 1, get_rank())
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(random_state(), path)


def random_state() -> dict[str, Any]:
    """The states of Python, numpy, torch and this process's GPU, as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of ``random_state``."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


class RecordHook(Hook):
    """List each checkpoint with its size and sha256 once every process has written its part."""

    priority = "LOWEST"  # after CheckpointHook

    def __init__(self, work: Path, due: Due) -> None:
        self.work = work
        self.due = due

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if not self.due.now(runner):
            return
        barrier()
        if watched():
            done = runner.iter + 1
            for name in (f"iter_{done}.pth", f"iter_{done}"):
                if (self.work / name).exists():
                    checkpoints.record(self.work / name)


class LookHook(Hook):
    """``core.training.look`` before the first step and at each checkpoint.

    A run with looks and one without train the same bits: they draw no random number, and the
    random state is put back all the same.
    """

    priority = "LOWEST"  # after the checkpoint is safe

    def __init__(
        self,
        tokenizer: Any,
        look: Look,
        health: Health,
        due: Due,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.look = look
        self.health = health
        self.due = due
        self.on_progress = on_progress
        self.found: list[Figures] = []

    def before_train(self, runner: Any) -> None:
        if runner.iter == 0:
            self._measure(runner, 0)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.due.planned(runner):
            self._measure(runner, self.due.step(runner))

    def _measure(self, runner: Any, step: int) -> None:
        if self.on_progress:
            self.on_progress("look at the checkpoint", 0, 0)
        llm, state = supervised_finetune(runner).llm, random_state()
        llm.eval()
        found = self.look.figures(llm, self.tokenizer, step)
        self.found.append(found)
        llm.train()
        restore_random_state(state)
        if watched():
            emit({"type": "figures", "step": step, "values": found.to_values()})
        self.health.figures(found)


class SampleHook(Hook):
    """Greedy replies to fixed prompts at each checkpoint: a look at the run, not a score."""

    priority = "LOWEST"  # after the checkpoint is safe

    def __init__(
        self,
        tokenizer: Any,
        prompts: Sequence[str],
        system: str,
        due: Due,
        out: Path,
    ) -> None:
        self.tokenizer = tokenizer
        self.prompts = list(prompts)
        self.system = system
        self.due = due
        self.out = out

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if self.prompts and self.due.planned(runner):
            self._sample(runner, self.due.step(runner))

    def _sample(self, runner: Any, step: int) -> None:
        llm = supervised_finetune(runner).llm
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        conversations: list[list[Message]] = [
            [*system, {"role": "user", "content": prompt}] for prompt in self.prompts
        ]
        llm.eval()
        voice = Resident(llm, self.tokenizer).voice()
        settings = GenerationSettings(max_new_tokens=SAMPLE_TOKENS)
        replies = decoding.replies(voice, conversations, settings)
        llm.train()
        if not watched():
            return
        with self.out.open("a", encoding="utf-8") as file:
            for prompt, reply in zip(self.prompts, replies, strict=True):
                record = {"type": "sample", "step": step, "prompt": prompt, "reply": reply.text}
                file.write(fsio.dump_json(record) + "\n")
                emit(record)
