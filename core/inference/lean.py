"""Llama shapes on a CPU: rows packed without padding, a thread for each processor core.

transformers decodes a batch padded to its longest prompt and grows the key-value cache by copying
it at every token. Here the cache is written in place, what prompts begin with is computed once, and
a row whose reply has ended is given to the next prompt, so that the matrix products stay wide. Two
threads that walk the same weights share them in the processor's cache, and neither waits for the
other's half of a product: beside other programs such waits made replies ten times slower.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from core.inference.backend import Batch, Part
from core.inference.llama import KVCache, LeanLlama, Segment
from core.inference.requests import Request

#: Beginnings whose keys and values are kept: more than four columns with an adapter each.
MAX_HEADS = 8

#: Keys and values of a beginning, each (layers, kv_heads, tokens, head_dim).
Head = tuple[Tensor, Tensor]


class LeanBackend:
    """The lean forward on a CPU.

    A beginning is always computed alone, so a reply does not depend on what was kept.
    """

    name = "lean, one thread a core"
    prefill_tokens = 1024
    best_rows = 96  # with more, a CPU is hardly faster

    def __init__(self, model: LeanLlama) -> None:
        self.model = model
        self.device = model.device
        self.entry_bytes = (
            2 * len(model.layers) * model.kv_heads * model.head_dim * model.dtype.itemsize
        )
        self.heads: dict[tuple[str | None, tuple[int, ...]], Head] = {}
        self._lock = threading.Lock()

    def lanes(self, requests: Sequence[Request], threads: int) -> list[list[Request]]:
        """One a core; with fewer requests one each."""
        count = max(1, min(threads, len(requests)))
        return [list(requests[i::count]) for i in range(count)]

    def open(self, rows: int, capacity: int) -> Batch:
        return LeanBatch(self, rows, capacity)

    def feed(self, parts: Sequence[Part]) -> Tensor:
        return self.model.forward([p.batch.segment(p.row, p.ids) for p in parts])

    def score(
        self, rows: Sequence[Sequence[int]], keep: Sequence[int], adapter: str | None
    ) -> list[Tensor]:
        cache = KVCache(self.model, len(rows), max(map(len, rows)))
        segments = [Segment(cache, i, 0, ids, adapter) for i, ids in enumerate(rows)]
        return list(self.model.forward(segments, keep).split(list(keep)))

    def forget(self) -> None:
        self.heads.clear()

    def head(self, adapter: str | None, ids: Sequence[int]) -> Head:
        """Keys and values of a beginning, computed or kept from before."""
        key = (adapter, tuple(ids))
        with self._lock:
            head = self.heads.pop(key, None)
            if head is None:
                own = KVCache(self.model, 1, len(ids))
                self.model.forward([Segment(own, 0, 0, ids, adapter)])
                head = own.keys[:, 0], own.values[:, 0]
            self.heads[key] = head  # the last used stands last
            while len(self.heads) > MAX_HEADS:
                del self.heads[next(iter(self.heads))]
        return head


class LeanBatch:
    """Rows ``0 .. n - 1`` are alive: the last moves into the place of one that ends."""

    refills = True

    def __init__(
        self, backend: LeanBackend, rows: int, capacity: int, *, masked: bool = False
    ) -> None:
        self.backend = backend
        self.cache = KVCache(backend.model, rows, capacity, zeroed=masked or rows > 1)
        self.lengths = [0] * rows
        self.adapters: list[str | None] = [None] * rows

    def begin(self, row: int, request: Request) -> int:
        self.adapters[row], self.lengths[row] = request.adapter, 0
        if 0 < request.head < len(request.prompt):
            keys, values = self.backend.head(request.adapter, request.prompt[: request.head])
            self.cache.keys[:, row, :, : request.head] = keys
            self.cache.values[:, row, :, : request.head] = values
            self.lengths[row] = request.head
        return self.lengths[row]

    def segment(self, row: int, ids: Sequence[int]) -> Segment:
        """Tokens that are appended to a row; it counts them as there."""
        start = self.lengths[row]
        self.lengths[row] += len(ids)
        return Segment(self.cache, row, start, ids, self.adapters[row])

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        model, count = self.backend.model, len(rows)
        if count == 1:
            return model.forward([self.segment(0, tokens)])
        ends = torch.tensor(self.lengths[:count])
        adapted = runs(self.adapters[:count])
        cache, longest = self.cache.first(count), max(self.lengths[:count]) + 1
        logits = model.step(torch.tensor(tokens), ends, cache, adapted, longest)
        for row in rows:
            self.lengths[row] += 1
        return logits

    def release(self, alive: Sequence[int]) -> list[tuple[int, int]]:
        count = len(alive)
        free = sorted(set(range(count)) - set(alive))
        moves = list(zip((row for row in alive if row >= count), free, strict=True))
        for source, target in moves:
            self.cache.move(source, target, self.lengths[source])
            self.lengths[target] = self.lengths[source]
            self.adapters[target] = self.adapters[source]
        return moves


def runs(adapters: Sequence[str | None]) -> list[tuple[slice, str]]:
    """One slice for each run of rows with the same adapter; none for the bare base."""
    found: list[tuple[slice, str]] = []
    start = 0
    for end in range(1, len(adapters) + 1):
        if end == len(adapters) or adapters[end] != adapters[start]:
            name = adapters[start]
            if name is not None:
                found.append((slice(start, end), name))
            start = end
    return found
