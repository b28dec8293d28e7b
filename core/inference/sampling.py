"""From logits to the next token: transformers' filters, and random numbers that columns share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from core.inference.requests import Request
from core.inference.settings import GenerationSettings


class Sampler:
    """Draws the next token of several replies that share their settings.

    Every reply has a random generator of its own, and the draw is the exponential race
    ``argmax(p / e)`` with one ``e`` per vocabulary entry: two columns with the same seed whose
    distributions agree draw the same token, so a difference between columns is the models'; and a
    reply does not depend on what is computed beside it.
    """

    def __init__(self, settings: GenerationSettings) -> None:
        from transformers import (
            LogitsProcessorList,
            MinPLogitsWarper,
            RepetitionPenaltyLogitsProcessor,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        self._greedy = settings.greedy
        self._penalty = None
        if settings.repetition_penalty != 1.0:
            self._penalty = RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)
        self.filters: Any = LogitsProcessorList()
        if not self._greedy:
            self.filters.append(TemperatureLogitsWarper(float(settings.temperature)))
            if settings.top_k:
                self.filters.append(TopKLogitsWarper(settings.top_k))
            if settings.top_p < 1:
                self.filters.append(TopPLogitsWarper(settings.top_p))
            if settings.min_p:
                self.filters.append(MinPLogitsWarper(settings.min_p))

    def __call__(self, logits: Tensor, requests: Sequence[Request]) -> Tensor:
        """Next token ids, shape (requests,), from logits of shape (requests, vocab_size)."""
        if self._penalty is not None:
            logits = torch.cat(
                [self._penalized(row, r) for row, r in zip(logits.float(), requests, strict=True)]
            )
        if self._greedy:
            return logits.argmax(-1)
        # None: the filters look at the scores only.
        scores = self.filters(None, logits.float())
        noise = torch.stack([self._noise(scores[0], r) for r in requests])
        return (scores.softmax(-1) / noise).argmax(-1)

    def _penalized(self, row: Tensor, request: Request) -> Tensor:
        assert self._penalty is not None
        seen = torch.tensor([request.prompt + request.token_ids], device=row.device)
        return self._penalty(seen, row[None])

    @staticmethod
    def _noise(like: Tensor, request: Request) -> Tensor:
        if request.random is None:
            request.random = torch.Generator(like.device).manual_seed(request.seed)
        return torch.empty_like(like).exponential_(generator=request.random)
