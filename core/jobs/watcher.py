"""What the supervisor makes of a job's output: metrics, warnings, and when to give up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from core.jobs.journal import Journal
from core.jobs.records import FiguresRecord, Metric, Sample, parse_line
from core.jobs.spec import RunSpec
from core.jobs.state import Reason

#: A loss this many times its running mean is worth a warning.
_JUMP = 100.0


class OutputWatcher:
    """Feeds on log lines.

    Attributes:
        give_up: set when the run should be ended for a reason of its own.
    """

    def __init__(
        self,
        spec: RunSpec,
        metrics: Journal,
        event: Callable[..., None],
        secret: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.give_up: Reason | None = None
        self._options = spec.options
        self._mmengine = spec.kind == "command"
        self._metrics = metrics
        self._event = event
        self._secret = secret
        self._clock = clock
        self._began = self._heard = clock()
        self._stalled = False
        self._nan_run = 0
        self._mean: float | None = None

    def feed(self, lines: Iterable[str]) -> None:
        """Take new lines; with none, notice silence."""
        rows = []
        for line in lines:
            self._heard = self._clock()
            try:
                if row := self._take(line):
                    rows.append({"t": round(self._heard - self._began, 3), **row})
            except Exception as error:  # nothing that a job prints may end its supervision
                self._event("warning", code="bad_record", message=f"{type(error).__name__}: {line}")
        if rows:
            self._metrics.append(*rows)
        self._notice_silence()

    def _take(self, line: str) -> dict[str, Any] | None:
        """The row of metrics.jsonl that a line stands for, if it does."""
        record = parse_line(line, self._secret, mmengine=self._mmengine)
        if record is None:
            return None
        if isinstance(record, Sample | FiguresRecord):
            self._event(record.type, **record.model_dump(exclude={"type"}))
            return None
        if isinstance(record, Metric):
            self._judge(record)
        return record.model_dump(exclude_defaults=True)

    def _notice_silence(self) -> None:
        silent = self._clock() - self._heard > self._options.stall_seconds
        if silent != self._stalled:
            self._stalled = silent
            self._event("stalled" if silent else "active", seconds=self._options.stall_seconds)

    def _judge(self, record: Metric) -> None:
        """Warn of a loss that jumps or is no number; give up on the second if told to."""
        loss = (record.model_extra or {}).get("loss")
        if loss is None and record.nan:
            self._nan_run += 1
            if self._nan_run == self._options.nan_steps:
                self._event(
                    "warning",
                    code="nan_loss",
                    step=record.step,
                    message=f"the loss was not a number for {self._nan_run} steps",
                )
                if self._options.stop_on_nan:
                    self.give_up = Reason.DIVERGED
            return
        if not isinstance(loss, (int, float)):
            return
        self._nan_run = 0
        if self._mean is not None and self._mean > 0 and loss > _JUMP * self._mean:
            self._event(
                "warning",
                code="loss_jump",
                step=record.step,
                message=f"the loss jumped from about {self._mean:.3g} to {loss:.3g}",
            )
        self._mean = loss if self._mean is None else 0.9 * self._mean + 0.1 * loss
