"""Checkpoints scored on all GPUs of the host, one at a time on each."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from core.conversation import OnProgress
from core.evaluation.scored import ScoredCheckpoint, Scorer, Task
from core.training.checkpoints import Checkpoint

#: Of a worker process.
_scorer: list[Scorer] = []


def score(
    task: Task, cards: Sequence[str], checkpoints: Sequence[Checkpoint], on_progress: OnProgress
) -> Iterator[ScoredCheckpoint]:
    """Each checkpoint's part, as they get ready.

    Every worker asks the base itself: they would wait for it otherwise.

    Args:
        cards: as CUDA_VISIBLE_DEVICES names them; one worker process each.
    """
    context = multiprocessing.get_context("spawn")
    free, told = context.Queue(), context.Queue()
    for card in cards:
        free.put(card)
    with (
        _relayed(told, on_progress),
        ProcessPoolExecutor(len(cards), context, _begin, (free, told, task)) as pool,
    ):
        for done in as_completed([pool.submit(_score, c) for c in checkpoints]):
            yield done.result()


def _begin(free: Any, told: Any, task: Task) -> None:
    """In a new worker: its GPU, before torch looks for one."""
    card = os.environ["CUDA_VISIBLE_DEVICES"] = free.get()

    def report(stage: str, done: int, total: int) -> None:
        told.put((card, stage, done, total))

    _scorer.append(Scorer(task, report))


def _score(checkpoint: Checkpoint) -> ScoredCheckpoint:
    print(
        f"step {checkpoint.step} is scored on GPU {os.environ['CUDA_VISIBLE_DEVICES']}", flush=True
    )
    return _scorer[0].score(checkpoint)


@contextmanager
def _relayed(told: Any, on_progress: OnProgress) -> Iterator[None]:
    """Pass on what the workers report; ``done`` is the sum of theirs."""
    done: dict[str, int] = {}

    def relay() -> None:
        while (report := told.get()) is not None:
            card, stage, finished, total = report
            done[card] = finished
            on_progress(stage, min(sum(done.values()), total), total)

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        told.put(None)
        thread.join(timeout=5)
