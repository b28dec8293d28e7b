"""Batch, length, held weights and recomputation that fit a device, each with its reason."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from core import fsio
from core.models.device import Device
from core.training import cost, rows
from core.training.spec import TrainSpec

#: Rows behind an optimizer step; gave the best recall in our trials.
ROWS_PER_STEP = 16
#: Typical rows that must fit beside a base that is held.
_BESIDE_HELD = 8


@dataclass(frozen=True)
class Fit:
    """What a run of this shape over these rows can afford on a device.

    Attributes:
        settings: of the spec, as far as they are chosen; each method goes by those before it.
    """

    device: Device
    shape: cost.Shape
    stats: rows.RowStats
    settings: dict[str, Any]

    @property
    def processes(self) -> int:
        """That share the rows of a step."""
        return self._spec().world_size

    @property
    def _room(self) -> float:
        return cost.usable_bytes(self.device)

    @property
    def _mean(self) -> float:
        return self.stats.kept / max(1, len(self.stats.lengths))

    def _spec(self, batch: int = 1, **more: Any) -> TrainSpec:
        """A spec for asking what memory a batch needs."""
        values = {**self.settings, "batch_size": batch, "max_length": 1 << 30, **more}
        return TrainSpec.from_dict({"dataset": "", **values})

    def length(self) -> tuple[int, str]:
        """The longest row, rounded up to 64 and at least 128; less if one alone does not fit."""
        longest = self.stats.longest
        wanted = max(128, 64 * math.ceil(longest / 64))
        spec = self._spec(hold_weights=False, activation_checkpointing=True)
        free = self._room - cost.peak_bytes(self.shape, spec, 0)
        each = cost.peak_bytes(self.shape, spec, 1000) - cost.peak_bytes(self.shape, spec, 0)
        most = int(free / each * 1000) // 64 * 64
        if 128 <= most < wanted:
            return most, (
                f"what one row may have in {fsio.human_bytes(self._room)}; longer ones, up to "
                f"{longest:,} tokens, lose their tail"
            )
        return wanted, f"the longest row has {longest} tokens"

    def hold(self) -> tuple[bool, str]:
        """Hold the dequantized base if eight typical rows still fit beside it."""
        held = self._spec(hold_weights=True)
        bits = 32 if held.dtype == "float32" else 16
        if cost.token_capacity(self.shape, held, self._room) >= _BESIDE_HELD * self._mean:
            return True, f"the base fits in memory at {bits} bits: it is dequantized once"
        return False, f"the base at {bits} bits would leave too little memory for the rows"

    def batch(self) -> tuple[int, str]:
        """Rows of a micro-batch.

        A batch of typical rows must fit without recomputing, one of the longest rows with it.
        """
        most = batch = max(1, ROWS_PER_STEP // self.processes)
        while batch > 1:
            spec = self._spec(batch, activation_checkpointing=True)
            longest = cost.memory_bytes(self.shape, spec, self.stats.longest)
            capacity = cost.token_capacity(self.shape, spec, self._room)
            if longest <= self._room and batch * self._mean <= capacity:
                break
            batch //= 2
        needed = cost.memory_bytes(self.shape, self._spec(batch), round(self._mean))
        return batch, (
            f"the largest up to {most} that fits in {fsio.human_bytes(self._room)}: "
            f"about {fsio.human_bytes(needed)} with rows of {self._mean:.0f} tokens"
        )

    def accumulation(self, batch: int) -> tuple[int, str]:
        """Micro-batches of an optimizer step."""
        count = max(1, ROWS_PER_STEP // (batch * self.processes))
        together = batch * count * self.processes
        return count, f"{together} rows an optimizer step"

    def recompute(self, batch: int) -> tuple[int, str]:
        """Tokens of a micro-batch above which activations are recomputed; 0 for never."""
        capacity = cost.token_capacity(self.shape, self._spec(batch), self._room)
        if batch * self.stats.longest <= capacity:
            return 0, "every micro-batch fits in memory"
        return (
            max(1, capacity),
            f"{capacity:,} tokens are what fits in memory without recomputing",
        )
