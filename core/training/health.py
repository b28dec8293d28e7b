"""When a run is beyond hope, and what it is called then: the one place.

DIVERGED: the loss is no number, or far above what it was before the weights moved. COLLAPSED: the
model no longer writes what it wrote. Both stop the run; nothing later mends such weights, and a
run that goes on to its end would be called done.
"""

from __future__ import annotations

import math
from collections import deque

from core.errors import UserError
from core.training.figures import Figures

#: Steps in a row with a loss that is no number.
_NAN_STEPS = 3
#: Rows whose mean loss is looked at: single steps differ by their rows.
_WINDOW_ROWS = 64
#: Diverged: beyond this multiple of the lowest of the first losses, and by so many nats. Reasoned,
#: not measured: a sound run's loss falls. One run of the bundled model at rate 10 ended at 85.
_LOSS_TIMES, _LOSS_NATS = 2.0, 4.0
#: Steps of which the lowest loss is the yardstick. The first is before the weights moved; a rate
#: that is much too high has ruined the third.
_FIRST = 5
#: Collapsed: perplexity of general replies over the base's. The verdict's COLLAPSED begins at 5
#: (gates.yaml), from which the falling rate may still bring a run back; that nothing comes back
#: from 3 nats a token is reasoned, not measured.
LOST_PERPLEXITY = 20.0
#: A checkpoint beyond this is not offered to be merged: the gate's failure is at 1.5, and the
#: replies that are weighed here were trained on, so that they change least.
DAMAGED_PERPLEXITY = 1.5

#: Beginnings of the messages, by which the table of faults knows them again.
DIVERGED = "training diverged"
COLLAPSED = "the model collapsed"


class Health:
    """Watches one run; not kept through a resume."""

    def __init__(self, rows_per_step: int) -> None:
        self._window = max(_FIRST, -(-_WINDOW_ROWS // rows_per_step))
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=self._window)
        self._bad = 0

    def loss(self, loss: float, step: int) -> None:
        """Take in the loss of an optimizer step. Raises UserError: the run diverged."""
        self._bad = 0 if math.isfinite(loss) else self._bad + 1
        if self._bad >= _NAN_STEPS:
            raise _calmer(
                f"{DIVERGED}: the loss is not a number for {self._bad} steps, up to step {step}",
                "the learning rate is too high for this model, or fp16 overflowed",
            )
        if self._bad:
            return
        if len(self._first) < _FIRST:
            self._first.append(loss)
        self._last.append(loss)
        first, last = min(self._first), sum(self._last) / len(self._last)
        full = len(self._last) == self._window
        if full and last > max(_LOSS_TIMES * first, first + _LOSS_NATS):
            raise _calmer(
                f"{DIVERGED}: the loss rose from {first:.3g} to {last:.3g} by step {step}",
                "the learning rate is too high for this model",
            )

    def figures(self, found: Figures) -> None:
        """Take in a look. Raises UserError: the model collapsed, or its figures are no numbers."""
        ratio = found.ppl_ratio
        if ratio is not None and not ratio < LOST_PERPLEXITY:
            raise _calmer(
                f"{COLLAPSED}: at step {found.step} it finds the base's own replies "
                f"{ratio:.3g} times as surprising as the base does",
                "the learning rate is too high for this model, or there are too few general rows",
            )


def _calmer(what: str, why: str) -> UserError:
    fix = "start again with a third of the learning rate, or less"
    return UserError(what, why=why, fix=fix)
