"""Llama shapes on a GPU: all rows are one batch, one CUDA graph a step.

On a GPU a step of a small model is bound by the launches of its kernels, not by their work: eager
decoding of one row takes as long as of thirty. So the rows advance together, row by row their own
adapter, and the whole step is recorded once and replayed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.inference.backend import Batch
from core.inference.lean import LeanBackend, LeanBatch, runs
from core.inference.requests import Request

#: Attention reads this many cache entries at least; the graph is recorded anew at each doubling.
SMALLEST_WINDOW = 256
#: Masks of other widths are copied into padded ones at every step.
_ALIGNMENT = 64
#: Two models in two threads must not record at the same time.
_recording = threading.Lock()


class GraphBackend(LeanBackend):
    """The lean forward on a GPU."""

    name = "lean, one batch, CUDA graph"
    best_rows = 256

    def lanes(self, requests: Sequence[Request], threads: int) -> list[list[Request]]:
        """One; requests with the same adapter stand together, so that each adapter is one slice."""
        return [sorted(requests, key=lambda r: r.adapter or "")]

    def open(self, rows: int, capacity: int) -> Batch:
        return GraphBatch(self, rows, -(-(capacity + 1) // _ALIGNMENT) * _ALIGNMENT)


class GraphBatch(LeanBatch):
    """Rows never move, since the graph has recorded them; one that has ended costs nothing.

    It is computed along with any token, and written where it stood, until it is given away.
    """

    def __init__(self, backend: LeanBackend, rows: int, capacity: int) -> None:
        super().__init__(backend, rows, capacity, masked=True)
        model = backend.model
        model.tables(capacity)
        on_gpu = model.device.type == "cuda"
        self._host = torch.zeros(2, rows, dtype=torch.long, pin_memory=on_gpu)
        self._fed = torch.zeros(2, rows, dtype=torch.long, device=model.device)
        self._logits = torch.empty(0)
        self._recorded: tuple[int, list[tuple[slice, str]]] | None = None
        self._graph: Any = None

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        window = self._recorded[0] if self._recorded else SMALLEST_WINDOW
        while window <= max(self.lengths[row] for row in rows):
            window *= 2
        wanted = (min(window, self.cache.capacity), runs(self.adapters))
        positions = [min(length, wanted[0] - 1) for length in self.lengths]
        self._host[1] = torch.tensor(positions)
        self._host[0, list(rows)] = torch.tensor(tokens)
        self._fed.copy_(self._host, non_blocking=True)
        if wanted != self._recorded:
            self._graph = None  # its memory first
            self._graph = self._record(*wanted)
            self._recorded = wanted
        self._graph.replay()
        for row in rows:
            self.lengths[row] += 1
        if len(rows) == len(self.lengths):
            return self._logits
        return self._logits[torch.tensor(rows, device=self._logits.device)]

    def release(self, alive: Sequence[int]) -> list[tuple[int, int]]:
        return []

    def _record(self, window: int, adapted: list[tuple[slice, str]]) -> Any:
        """Record one step. A rehearsal outside the graph lets libraries set themselves up.

        The rehearsal writes the same keys and values that the replay will write again.
        """
        step = self.backend.model.step
        arguments = (self._fed[0], self._fed[1], self.cache, adapted, window)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                step(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what another model's thread does meanwhile must not spoil the recording.
        with _recording, torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._logits = step(*arguments)
        return graph
