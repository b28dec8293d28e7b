"""Any causal model: transformers' own forward over left-padded rows, one batch an adapter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.inference import adapters
from core.inference.backend import Batch, Part
from core.inference.fused import inner_model
from core.inference.requests import Request


class PaddedBackend:
    """For models that the lean forward does not compute, and for those that are in training.

    Adapters are switched by thread, so base and tuned run at the same time over one copy.
    """

    name = "transformers"
    prefill_tokens = 1 << 30  # padded rows begin together

    def __init__(self, model: Any) -> None:
        self.model = inner_model(model)
        self.device = self.model.device
        self.best_rows = 96 if self.device.type == "cpu" else 256
        config = self.model.config.get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        heads = getattr(config, "num_key_value_heads", None) or heads
        size = torch.finfo(self.model.dtype).bits // 8
        self.entry_bytes = 2 * config.num_hidden_layers * heads * width * size

    def lanes(self, requests: Sequence[Request], threads: int) -> list[list[Request]]:
        """One an adapter: a thread computes with one at a time."""
        by_adapter: dict[str | None, list[Request]] = {}
        for request in requests:
            by_adapter.setdefault(request.adapter, []).append(request)
        return list(by_adapter.values())

    def open(self, rows: int, capacity: int) -> Batch:
        return _PaddedBatch(self.model)

    def feed(self, parts: Sequence[Part]) -> Tensor:
        batches = list(dict.fromkeys(p.batch for p in parts))
        return torch.cat([b.prefill([p.ids for p in parts if p.batch is b]) for b in batches])

    def score(
        self, rows: Sequence[Sequence[int]], keep: Sequence[int], adapter: str | None
    ) -> list[Tensor]:
        ids, mask = _padded(rows, self.device)
        with adapters.using(adapter):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
                # By index, not by number: transformers' slice is no whole block of memory, and the
                # head's product over one takes 29 times as long in bf16 on a CPU, and 3.7 GB.
                logits_to_keep=torch.arange(-max(keep), 0, device=self.device),
            ).logits
        return [row[-count:] for row, count in zip(logits, keep, strict=True)]

    def forget(self) -> None:
        return


class _PaddedBatch:
    """Rows of transformers' cache. Those that end leave it: the cost on a CPU is per row."""

    refills = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self._adapter: str | None = None
        self._cache: Any = None
        self._mask = torch.empty(0)
        self._padding = False

    def begin(self, row: int, request: Request) -> int:
        self._adapter = request.adapter
        return 0

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Begin anew with these rows; logits after each prompt, (rows, vocab_size)."""
        from transformers import DynamicCache

        self._cache = DynamicCache()
        ids, self._mask = _padded(prompts, self._model.device)
        self._padding = not bool(self._mask.all())
        return self._forward(ids)

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(rows), 1)], dim=1)
        return self._forward(torch.tensor(tokens, device=self._mask.device)[:, None])

    def release(self, alive: Sequence[int]) -> list[tuple[int, int]]:
        if alive:
            index = torch.tensor(alive, device=self._mask.device)
            self._mask = self._mask[index]
            self._cache.batch_select_indices(index)
        return [(source, target) for target, source in enumerate(alive) if source != target]

    def _forward(self, ids: Tensor) -> Tensor:
        extra = {}
        if self._padding:  # else left out: some families do not take them
            positions = (self._mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
            extra = {"attention_mask": self._mask, "position_ids": positions}
        with adapters.using(self._adapter):
            logits: Tensor = self._model(
                input_ids=ids,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
                **extra,
            ).logits
        return logits[:, -1]


def _padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (rows, longest), padded on the left with id 0, which the mask hides."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + list(r) for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask
