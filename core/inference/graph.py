"""Runs replies on a GPU: all columns are rows of one batch, one CUDA graph a step.

On a GPU a step of a small model is bound by the launches of its kernels, not by their work: eager
decoding of one row takes as long as of thirty. So the columns advance together, row by row their
own adapter, and the whole step is recorded once and replayed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from core.inference.llama import KVCache, LeanLlama
from core.inference.runner import for_each_group, log_probabilities, prefill
from core.inference.sampling import Sampler
from core.inference.stream import Stream

#: Attention reads this many cache entries at least; the graph is recorded anew at each doubling.
_SMALLEST_WINDOW = 256
#: Masks of other widths are copied into padded ones at every step.
_ALIGNMENT = 64
#: Two models in two threads must not record at the same time.
_recording = threading.Lock()


@dataclass
class _Batch:
    """Rows that advance together, and what the recorded graph reads and writes."""

    streams: list[Stream]
    cache: KVCache
    sampler: Sampler
    tokens: Tensor  # (rows,), fed at the next step
    positions: Tensor  # (rows,), where they are written
    host: Tensor  # (rows,), pinned copy of tokens
    rows: list[tuple[slice, str]]
    logits: Tensor | None = None
    graphs: dict[int, Any] = field(default_factory=dict)


class GraphRunner:
    """Llama shapes on a GPU."""

    name = "lean, one batch, CUDA graph"

    def __init__(self, model: LeanLlama) -> None:
        self._model = model

    def run(self, streams: Sequence[Stream], threads: int) -> None:
        # Rows with the same adapter stand together, so that each adapter is one slice.
        ordered = sorted(streams, key=lambda s: s.adapter or "")
        for_each_group(self._run, ordered)

    def log_probabilities(self, ids: list[int], start: int, adapter: str | None) -> Tensor:
        return log_probabilities(self._model, ids, start, adapter)

    def _run(self, streams: Sequence[Stream]) -> None:
        with torch.inference_mode():
            batch = self._start([s for s in streams if not s.finished])
            if batch is None:
                return
            longest = max(len(s.prompt) for s in batch.streams)
            steps = 0
            while not all(s.finished for s in batch.streams):
                steps += 1
                self._advance(batch, longest + steps)

    def _start(self, streams: list[Stream]) -> _Batch | None:
        model = self._model
        needed = max(len(s.prompt) for s in streams) + max(s.limit for s in streams) + 1
        capacity = -(-needed // _ALIGNMENT) * _ALIGNMENT
        cache = KVCache(model, len(streams), capacity, zeroed=True)
        model.tables(capacity)
        logits = prefill(model, streams, [(cache, row) for row in range(len(streams))])
        if not logits:
            return None
        # A cancelled row stays in the batch, which it no longer delays, with any token.
        filler = next(iter(logits.values()))
        stacked = torch.stack([logits.get(i, filler) for i in range(len(streams))])
        sampler = Sampler(
            streams[0].settings, [s.prompt for s in streams], model.vocab_size, model.device
        )
        tokens = sampler(stacked)
        _push(streams, tokens.tolist())
        return _Batch(
            streams=streams,
            cache=cache,
            sampler=sampler,
            tokens=tokens.clone(),
            positions=torch.tensor([len(s.prompt) for s in streams], device=model.device),
            host=torch.empty(len(streams), dtype=torch.long, pin_memory=True),
            rows=_rows(streams),
        )

    def _advance(self, batch: _Batch, length: int) -> None:
        """One step of every row. Ends with the tokens handed to the streams."""
        window = _SMALLEST_WINDOW
        while window < length:
            window *= 2
        window = min(window, batch.cache.capacity)
        if window not in batch.graphs:
            batch.graphs.clear()  # the smaller one is never needed again
            batch.graphs[window] = self._record(batch, window)
        batch.graphs[window].replay()
        assert batch.logits is not None
        batch.tokens.copy_(batch.sampler(batch.logits))
        batch.positions += 1
        batch.host.copy_(batch.tokens, non_blocking=True)
        torch.cuda.current_stream().synchronize()
        _push(batch.streams, batch.host.tolist())

    def _record(self, batch: _Batch, window: int) -> Any:
        """Record one step. A rehearsal outside the graph lets libraries set themselves up.

        The rehearsal writes the same keys and values that the replay will write again.
        """
        arguments = (batch.tokens, batch.positions, batch.cache, batch.rows, window)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._model.step(*arguments)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what another model's thread does meanwhile must not spoil the recording.
        with _recording, torch.cuda.graph(graph, capture_error_mode="thread_local"):
            batch.logits = self._model.step(*arguments)
        return graph


def _push(streams: Sequence[Stream], tokens: Sequence[int]) -> None:
    for stream, token in zip(streams, tokens, strict=True):
        if not stream.finished:
            stream.push(token)


def _rows(streams: Sequence[Stream]) -> list[tuple[slice, str]]:
    """One slice for each run of rows with the same adapter."""
    runs: list[tuple[slice, str]] = []
    start = 0
    for end in range(1, len(streams) + 1):
        if end == len(streams) or streams[end].adapter != streams[start].adapter:
            name = streams[start].adapter
            if name is not None:
                runs.append((slice(start, end), name))
            start = end
    return runs
