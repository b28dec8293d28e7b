"""What the scheduler asks of whoever computes: rows of a key-value cache that advance together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from core.inference.requests import Request

#: Keys and values of all rows of a batch on a CPU; on a GPU a quarter of what is free.
CACHE_BYTES = 1 << 29


class Batch(Protocol):
    """Some rows of one cache, each at its own position.

    Attributes:
        refills: a free row may begin while others go on.
    """

    refills: bool

    def begin(self, row: int, request: Request) -> int:
        """Give a free row to a request; how many tokens of its prompt are there already."""

    def step(self, rows: Sequence[int], tokens: Sequence[int]) -> Tensor:
        """Feed one token to each of these rows, which are all that are alive.

        Returns:
            Logits (rows, vocab_size).
        """

    def release(self, alive: Sequence[int]) -> list[tuple[int, int]]:
        """Let go of all other rows; the moves (from, to) by which the alive ones close ranks."""


class Part(NamedTuple):
    """Prompt tokens that a row takes."""

    batch: Any
    row: int
    ids: Sequence[int]


class Backend(Protocol):
    """Computes replies of one resident model, several at a time.

    Attributes:
        name: for people.
        prefill_tokens: prompt tokens computed at once, over all rows; bounds the memory of the
            activations, and Stop is heard between two blocks.
        best_rows: rows with which a batch is fastest.
        entry_bytes: keys and values of one token.
    """

    name: str
    prefill_tokens: int
    best_rows: int
    entry_bytes: int
    device: torch.device

    def lanes(self, requests: Sequence[Request], threads: int) -> list[list[Request]]:
        """Deal the requests to batches that advance on their own, each in a thread."""

    def open(self, rows: int, capacity: int) -> Batch:
        """Rows for prompts and replies of at most ``capacity`` tokens."""

    def feed(self, parts: Sequence[Part]) -> Tensor:
        """Append to rows; logits after the last token of each part, (parts, vocab_size)."""

    def score(
        self, rows: Sequence[Sequence[int]], keep: Sequence[int], adapter: str | None
    ) -> list[Tensor]:
        """Logits of the last ``keep[i]`` positions of each row, (keep[i], vocab_size)."""

    def forget(self) -> None:
        """The weights have changed: drop what was computed with them."""


def rows_that_fit(backend: Backend, capacity: int) -> int:
    """Rows of a batch that the memory allows, at most as many as are of use.

    At least as many as there are columns in a chat, none of which can wait for another.
    """
    room = CACHE_BYTES
    if backend.device.type == "cuda":
        room = torch.cuda.mem_get_info(backend.device)[0] // 4
    return max(4, min(backend.best_rows, room // (capacity * backend.entry_bytes)))
