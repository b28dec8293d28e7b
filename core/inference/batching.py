"""Many greedy or sampled replies on a CPU: rows of one cache, each at its own position.

transformers decodes a batch padded to its longest prompt and grows the key-value cache by copying
it at every token. Here prompts are packed without padding, what all of them begin with (the
template's system turn) is computed once, the cache is written in place, and a row whose reply has
ended is given to the next prompt, so that the matrix products stay wide.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from core.inference.llama import KVCache, LeanLlama, Segment, agrees, inner_model, unsupported

#: Prompt tokens computed at once; bounds the memory of the activations.
PREFILL_TOKENS = 1024
#: Keys and values of all rows of a thread; long prompts get fewer rows.
CACHE_BYTES = 1 << 29

Picker = Callable[[Tensor], Tensor]

_known: weakref.WeakKeyDictionary[Any, tuple[int, LeanLlama | None]] = weakref.WeakKeyDictionary()


def lean_model(model: Any) -> tuple[LeanLlama, str | None] | None:
    """The lean forward pass of a model and the adapter that it applies just now.

    None where transformers' own pass has to be used: on a GPU, in half precision, while the model
    is trained (its weights must stay where the optimizer knows them), with several adapters at a
    time, for other families, and if the two do not agree on a probe.
    """
    inner = inner_model(model)
    if inner.device.type != "cpu" or inner.dtype != torch.float32:
        return None
    if any(p.requires_grad for p in model.parameters()):
        return None
    active = _active_adapters(model)
    if len(active) > 1:
        return None
    adapter = active[0] if active else None
    # By the outer model: an adapter that is swapped for another comes with a new one.
    adapters = len(getattr(model, "peft_config", {}))
    known = _known.get(model)
    if known is None or known[0] != adapters:
        lean = None if unsupported(model) else LeanLlama(model)
        if lean is not None and not agrees(
            lean, adapter, lambda ids: model(input_ids=ids).logits[0]
        ):
            lean = None
        known = _known[model] = (adapters, lean)
    return None if known[1] is None else (known[1], adapter)


def _active_adapters(model: Any) -> list[str]:
    layer = next((m for m in model.modules() if hasattr(m, "lora_A")), None)
    return [] if layer is None or layer.disable_adapters else list(layer.active_adapters)


def decode(
    lean: LeanLlama,
    adapter: str | None,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    rows: int,
    pick: Picker,
    threads: int,
    on_done: Callable[[int], None],
) -> list[list[int]]:
    """Token ids of each reply, its stop token included.

    Args:
        prompts: in the order in which they are to begin; short ones first cost least.
        rows: replies that are computed at the same time, by each thread.
        pick: logits (replies, vocab_size) to token ids (replies,).
        threads: each answers its share of the prompts with one processor core. That wastes no
            time at barriers: beside other programs a thread that waits for another one's half of
            a product made replies ten times slower. 1 keeps the order in which ``pick`` is called.
        on_done: called with the number of finished replies, on the calling thread.
    """
    threads = max(1, min(threads, len(prompts)))
    shares = [range(i, len(prompts), threads) for i in range(threads)]
    over = threading.Event()
    finished: queue.SimpleQueue[int] = queue.SimpleQueue()

    def work(share: Sequence[int]) -> list[list[int]]:
        if threads > 1:
            torch.set_num_threads(1)  # OpenMP keeps this number per thread
        mine = [prompts[i] for i in share]
        done = 0
        try:
            with torch.inference_mode():
                job = _Batch(lean, adapter, mine, set(stop_ids), max_new_tokens, rows, pick)
                while (job.waiting or job.alive) and not over.is_set():
                    job.fill()
                    if job.alive:
                        job.step()
                    finished.put(job.finished - done)
                    done = job.finished
        except BaseException:
            over.set()  # the other shares need not go on
            raise
        return job.out

    total = 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            futures = [pool.submit(work, share) for share in shares]
            while not (all(f.done() for f in futures) and finished.empty()):
                with suppress(queue.Empty):
                    more = finished.get(timeout=0.1)
                    total += more
                    if more:
                        on_done(total)
        finally:
            over.set()  # an interrupt ends all shares
    out: list[list[int]] = [[] for _ in prompts]
    for share, future in zip(shares, futures, strict=True):
        for i, ids in zip(share, future.result(), strict=True):
            out[i] = ids
    return out


class _Batch:
    """The rows of one cache: row ``i`` is written by reply ``alive[i]``."""

    def __init__(
        self,
        lean: LeanLlama,
        adapter: str | None,
        prompts: Sequence[Sequence[int]],
        stops: set[int],
        max_new_tokens: int,
        rows: int,
        pick: Picker,
    ) -> None:
        self._lean, self._adapter, self._prompts = lean, adapter, prompts
        self._stops, self._limit, self._pick = stops, max_new_tokens, pick
        self.waiting = deque(range(len(prompts)))
        self.alive: list[int] = []
        self.out: list[list[int]] = [[] for _ in prompts]
        self.finished = 0
        capacity = max(len(p) for p in prompts) + max_new_tokens
        entry = 2 * len(lean.layers) * lean.kv_heads * lean.head_dim * lean.dtype.itemsize
        self._rows = max(1, min(rows, len(prompts), CACHE_BYTES // (capacity * entry)))
        # Zeroed: the attention masks what is not written, and a mask does not silence a NaN.
        # The system commits only the pages that are written.
        self._cache = KVCache(lean, self._rows, capacity, zeroed=True)
        self._shared = _common_start(prompts)
        self._start = KVCache(lean, 1, max(1, self._shared))
        if self._shared:
            lean.forward([Segment(self._start, 0, 0, prompts[0][: self._shared], adapter)])

    def fill(self) -> None:
        """Begin replies in the free rows, as many as fit into one block of prompt tokens."""
        fresh: list[int] = []
        tokens = 0
        while self.waiting and len(self.alive) + len(fresh) < self._rows:
            size = len(self._prompts[self.waiting[0]]) - self._shared
            if fresh and tokens + size > PREFILL_TOKENS:
                break
            fresh.append(self.waiting.popleft())
            tokens += size
        if not fresh:
            return
        at, shared = len(self.alive), self._shared
        taken = slice(at, at + len(fresh))
        self._cache.keys[:, taken, :, :shared] = self._start.keys[..., :shared, :]
        self._cache.values[:, taken, :, :shared] = self._start.values[..., :shared, :]
        logits = self._lean.forward(
            [
                Segment(self._cache, at + i, shared, self._prompts[n][shared:], self._adapter)
                for i, n in enumerate(fresh)
            ]
        )
        self.alive += fresh
        self._take(logits, at)

    def step(self) -> None:
        """One more token for every reply that is alive."""
        count = len(self.alive)
        tokens = torch.tensor([self.out[n][-1] for n in self.alive])
        ends = [len(self._prompts[n]) + len(self.out[n]) - 1 for n in self.alive]
        view = self._cache.first(count)
        adapted = [(slice(0, count), self._adapter)] if self._adapter else []
        logits = self._lean.step(tokens, torch.tensor(ends), view, adapted, max(ends) + 1)
        self._take(logits, 0)

    def _take(self, logits: Tensor, at: int) -> None:
        """Append the chosen tokens to the replies from row ``at`` on; let the ended ones go."""
        for row, token in enumerate(self._pick(logits).tolist(), start=at):
            self.out[self.alive[row]].append(token)
        for row in reversed(range(at, len(self.alive))):
            reply = self.out[self.alive[row]]
            if reply[-1] in self._stops or len(reply) >= self._limit:
                self._release(row)

    def _release(self, row: int) -> None:
        """The last row moves into the place of one that has ended."""
        last = len(self.alive) - 1
        if row != last:
            n = self.alive[last]
            used = len(self._prompts[n]) + len(self.out[n])
            self._cache.move(last, row, used)
            self.alive[row] = n
        self.alive.pop()
        self.finished += 1


def _common_start(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that every prompt begins with; each keeps one token of its own at least."""
    first, last = min(map(list, prompts)), max(map(list, prompts))  # the rest lie between
    limit = min(map(len, prompts)) - 1
    same = 0
    while same < limit and first[same] == last[same]:
        same += 1
    return same
