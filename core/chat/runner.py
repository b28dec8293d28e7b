"""Runs replies on one resident model: any transformers model, one thread a reply."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from core.chat import adapters
from core.chat.sampling import Sampler
from core.chat.stream import Stream


class Runner(Protocol):
    """Decodes several streams over one copy of the weights."""

    def run(self, streams: Sequence[Stream]) -> None:
        """Return when every stream has finished or failed. Never raises for one stream's sake."""


class ThreadedRunner:
    """The general case: transformers' own forward with a growing cache, one thread a stream.

    Adapters are switched per thread, so base and tuned run at the same time over one copy.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._vocab = int(model.get_output_embeddings().weight.shape[0])

    def run(self, streams: Sequence[Stream]) -> None:
        """One thread a stream; the machine's threads are dealt out evenly."""
        if len(streams) == 1:
            _guarded(self._decode, streams[0])
            return
        threads = [
            threading.Thread(target=_guarded, args=(self._decode, s), name=f"reply-{s.side}")
            for s in streams
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

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


def _guarded(work: Any, stream: Stream) -> None:
    """A stream's failure is its own: it is reported in its column and the others go on."""
    try:
        work(stream)
    except Exception as error:
        stream.fail(error)
