"""From logits to the next token. Same filters, same order and same arithmetic as transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from core.inference.settings import ChatSettings


class Sampler:
    """Draws the next token of several replies that share their settings.

    Every row has a random generator of its own with the same seed, and the draw is the
    exponential race ``argmax(p / e)`` with one ``e`` per vocabulary entry: two columns whose
    distributions agree draw the same token, so a difference between columns is the models'.

    Args:
        prompts: token ids fed to each row; they count for the repetition penalty.
        vocab_size: width of the logits.
    """

    def __init__(
        self,
        settings: ChatSettings,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self._rows = torch.arange(len(prompts), device=device)
        self._seen: Tensor | None = None
        if settings.repetition_penalty != 1.0:
            self._seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
            for row, ids in enumerate(prompts):
                self._seen[row, torch.tensor(list(ids), dtype=torch.long, device=device)] = True
        self._generators = [
            torch.Generator(device=device).manual_seed(settings.seed) for _ in prompts
        ]

    def __call__(self, logits: Tensor) -> Tensor:
        """Next token ids, shape (rows,), from logits of shape (rows, vocab_size)."""
        scores = logits if self._seen is None else self._penalize(logits.float())
        if self.settings.greedy:
            tokens = scores.argmax(-1)
        else:
            tokens = self._draw(self._filter(scores.float() / self.settings.temperature))
        if self._seen is not None:
            self._seen[self._rows, tokens] = True
        return tokens

    def _penalize(self, scores: Tensor) -> Tensor:
        assert self._seen is not None
        penalty = self.settings.repetition_penalty
        return torch.where(
            self._seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores
        )

    def _filter(self, scores: Tensor) -> Tensor:
        top_k, top_p = self.settings.top_k, self.settings.top_p
        if 0 < top_k < scores.shape[-1]:
            floor = scores.topk(top_k, dim=-1).values[..., -1:]
            scores = scores.masked_fill(scores < floor, -torch.inf)
        if top_p < 1:
            ordered, order = scores.sort(dim=-1)
            # Ascending: drop the tail whose probabilities sum to at most 1 - top_p, never the top.
            drop = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
            drop[..., -1] = False
            scores = scores.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
        return scores

    def _draw(self, scores: Tensor) -> Tensor:
        noise = torch.stack(
            [
                torch.empty_like(scores[0]).exponential_(generator=generator)
                for generator in self._generators
            ]
        )
        return (scores.softmax(-1) / noise).argmax(-1)
