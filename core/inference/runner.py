"""Runs the replies of one resident model: who computes what in which thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from core.inference import adapters
from core.inference.llama import KVCache, LeanLlama, Segment, agrees, inner_model, unsupported
from core.inference.sampling import Sampler
from core.inference.stream import Stream, is_out_of_memory

#: Prompt tokens computed at once, over all columns: bounds the memory of a long prompt, and Stop
#: is heard between two blocks.
PREFILL_BLOCK = 1024
#: Beginnings whose keys and values are kept: more than four columns with an adapter each.
MAX_HEADS = 8
#: A shorter one saves nothing, a longer one costs more memory than its time is worth.
HEAD_TOKENS = range(16, 513)


class Runner(Protocol):
    """Decodes several streams over one copy of the weights."""

    name: str

    def run(self, streams: Sequence[Stream], threads: int) -> None:
        """Return when every stream has finished or failed. Never raises for one stream's sake.

        Args:
            threads: processor threads that these streams may use together.
        """

    def log_probabilities(self, ids: list[int], start: int, adapter: str | None) -> Tensor:
        """Log-probabilities of the next token after each of ``ids[start:]``, float32, on the CPU.

        Shape (len(ids) - start, vocab_size).
        """


class ThreadedRunner:
    """The general case: transformers' own forward with a growing cache, one thread a stream.

    Adapters are switched per thread, so base and tuned run at the same time over one copy.
    """

    name = "transformers"

    def __init__(self, model: Any) -> None:
        self._model = inner_model(model)
        self._vocab = int(model.get_output_embeddings().weight.shape[0])

    def run(self, streams: Sequence[Stream], threads: int) -> None:
        in_threads(self._decode, streams, threads)

    def log_probabilities(self, ids: list[int], start: int, adapter: str | None) -> Tensor:
        with torch.inference_mode(), adapters.using(adapter):
            tokens = torch.tensor([ids], device=self._model.device)
            logits = self._model(input_ids=tokens, logits_to_keep=len(ids) - start).logits[0]
            return logits[-(len(ids) - start) :].float().log_softmax(-1).cpu()

    def _decode(self, stream: Stream) -> None:
        from transformers import DynamicCache

        device = self._model.device
        sampler = Sampler(stream.settings, [stream.prompt], self._vocab, device)
        cache = DynamicCache()
        ids = torch.tensor([stream.prompt], device=device)
        with torch.inference_mode(), adapters.using(stream.adapter):
            while not stream.cancelled.is_set():
                logits = self._model(
                    input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1
                ).logits[:, -1]
                token = sampler(logits)
                if stream.push(int(token)):
                    return
                ids = token[:, None]
        stream.finish("cancelled")


class LeanRunner:
    """Llama shapes on a CPU: prompts computed together, then one thread a reply.

    Prompts are many tokens wide, so the columns share one pass over the weights. A single token is
    a matrix-vector product, which the CPU's libraries do not batch well: two threads that walk the
    same weights at the same time share them in the cache instead.

    What every prompt of a column begins with, such as the default system turn, is computed once and
    its keys and values are kept: of a short question it is half of the work before the first token.
    It is always computed alone, so a reply does not depend on what was kept.
    """

    name = "lean, one thread a column"

    def __init__(self, model: LeanLlama) -> None:
        self._model = model
        self._heads: dict[tuple[str | None, tuple[int, ...]], tuple[Tensor, Tensor]] = {}

    def run(self, streams: Sequence[Stream], threads: int) -> None:
        torch.set_num_threads(threads)
        ready: dict[str, _Ready] = {}
        for_each_group(lambda group: ready.update(self._prefill(group)), streams)
        in_threads(
            lambda stream: self._decode(stream, ready[stream.side]),
            [s for s in streams if s.side in ready],
            threads,
        )

    def log_probabilities(self, ids: list[int], start: int, adapter: str | None) -> Tensor:
        return log_probabilities(self._model, ids, start, adapter)

    def _prefill(self, streams: Sequence[Stream]) -> dict[str, _Ready]:
        """First token of every stream; those that go on, by column."""
        caches = [KVCache(self._model, 1, s.cache_tokens) for s in streams]
        ready: dict[str, _Ready] = {}
        with torch.inference_mode():
            done = [self._begin(s, cache) for s, cache in zip(streams, caches, strict=True)]
            logits = prefill(self._model, streams, [(cache, 0) for cache in caches], done)
            for index, row in logits.items():
                stream = streams[index]
                sampler = Sampler(stream.settings, [stream.prompt], self._model.vocab_size)
                token = int(sampler(row[None]))
                if not stream.push(token):
                    ready[stream.side] = _Ready(caches[index], sampler, token)
        return ready

    def _begin(self, stream: Stream, cache: KVCache) -> int:
        """Put the head's keys and values into the cache; how many tokens that is."""
        length = stream.head
        if length not in HEAD_TOKENS or length >= len(stream.prompt):
            return 0
        key = (stream.adapter, tuple(stream.prompt[:length]))
        kept = self._heads.pop(key, None)
        if kept is None:
            own = KVCache(self._model, 1, length)
            self._model.forward([Segment(own, 0, 0, stream.prompt[:length], stream.adapter)])
            kept = own.keys[:, 0], own.values[:, 0]
        self._heads[key] = kept  # the last used stands last
        while len(self._heads) > MAX_HEADS:
            del self._heads[next(iter(self._heads))]
        cache.keys[:, 0, :, :length], cache.values[:, 0, :, :length] = kept
        return length

    def _decode(self, stream: Stream, ready: _Ready) -> None:
        position, token = len(stream.prompt), ready.token
        with torch.inference_mode():
            while not stream.cancelled.is_set():
                segment = Segment(ready.cache, 0, position, [token], stream.adapter)
                token = int(ready.sampler(self._model.forward([segment])))
                position += 1
                if stream.push(token):
                    return
        stream.finish("cancelled")


@dataclass
class _Ready:
    """A stream after its prompt: the cache, the sampler and the first token."""

    cache: KVCache
    sampler: Sampler
    token: int


def prefill(
    model: LeanLlama,
    streams: Sequence[Stream],
    places: Sequence[tuple[KVCache, int]],
    done: Sequence[int] = (),
) -> dict[int, Tensor]:
    """Feed all prompts together, in blocks; a stream that is cancelled meanwhile is finished.

    Args:
        places: cache and row of each stream.
        done: tokens of each prompt that the cache holds already; default none.

    Returns:
        Logits of each prompt's last token, (vocab_size,), by index of the stream.
    """
    last: dict[int, Tensor] = {}
    fed = list(done) or [0] * len(streams)
    waiting = list(range(len(streams)))
    while waiting:
        block = max(1, PREFILL_BLOCK // len(waiting))
        segments = [
            Segment(
                *places[i], fed[i], streams[i].prompt[fed[i] : fed[i] + block], streams[i].adapter
            )
            for i in waiting
        ]
        for i, segment, row in zip(waiting, segments, model.forward(segments), strict=True):
            fed[i] += len(segment.ids)
            if fed[i] == len(streams[i].prompt):
                last[i] = row
        for i in waiting:
            if i not in last and streams[i].cancelled.is_set():
                streams[i].finish("cancelled")
        waiting = [i for i in waiting if i not in last and not streams[i].finished]
    return last


def log_probabilities(model: LeanLlama, ids: list[int], start: int, adapter: str | None) -> Tensor:
    """As ``Runner.log_probabilities``; the head is applied to the wanted positions only."""
    with torch.inference_mode():
        cache = KVCache(model, 1, len(ids))
        if start:
            model.forward([Segment(cache, 0, 0, ids[:start], adapter)])
        logits = model.forward([Segment(cache, 0, start, ids[start:], adapter)], every=True)
        return logits.float().log_softmax(-1).cpu()


def for_each_group(work: Callable[[Sequence[Stream]], None], streams: Sequence[Stream]) -> None:
    """Try all streams together; if memory runs out, one by one, so that some still succeed."""
    try:
        work(streams)
        return
    except Exception as error:
        if not is_out_of_memory(error) or len(streams) == 1:
            for stream in streams:
                stream.fail(error)
            return
    release_memory()
    for stream in streams:
        if not stream.finished:
            for_each_group(work, [stream])


def in_threads(work: Callable[[Stream], None], streams: Sequence[Stream], threads: int) -> None:
    """One thread a stream; the processor's threads are dealt out evenly."""
    share = max(1, threads // max(1, len(streams)))

    def guarded(stream: Stream) -> None:
        try:
            torch.set_num_threads(share)  # OpenMP keeps this number per thread
            work(stream)
        except Exception as error:  # a stream's failure is its own: the others go on
            stream.fail(error)

    if len(streams) == 1:
        guarded(streams[0])
        return
    running = [threading.Thread(target=guarded, args=(s,), name=f"reply-{s.side}") for s in streams]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()


def release_memory() -> None:
    """Give cached GPU memory back; on a CPU collecting garbage is all there is to do."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def make_runner(model: Any) -> Runner:
    """The fastest runner that computes what transformers computes for this model."""
    if unsupported(model):
        return ThreadedRunner(model)
    lean = LeanLlama(model)
    if not all_agree(lean, model):
        return ThreadedRunner(model)
    if lean.device.type == "cuda":
        from core.inference.graph import GraphRunner

        return GraphRunner(lean)
    return LeanRunner(lean)


def all_agree(lean: LeanLlama, model: Any) -> bool:
    """For the base and for every adapter."""
    inner = inner_model(model)

    def logits(ids: Tensor) -> Tensor:
        return inner(ids).logits[0]

    for name in (None, *getattr(model, "peft_config", {})):
        with adapters.using(name):
            if not agrees(lean, name, logits):
                return False
    return True
