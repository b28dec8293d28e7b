"""How long the Train page's two questions take: every run's state, and one run's curves.

    python benchmarks/status_speed.py

Prints the median of several looks at 500 finished runs, and at one run of 100,000 metric lines:
the first look of a new server, and the look after 10 more lines (what the page does every two
seconds). Exits with 1 if a target is missed: 300 ms for the list, 50 ms for either look.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RUNS, LINES = 500, 100_000
LIST_TARGET_MS, LOOK_TARGET_MS = 300.0, 50.0


def make_finished_runs(count: int) -> None:
    """Run directories as a supervisor leaves them."""
    from core import fsio
    from core.jobs import api

    for index in range(count):
        run = api.create("train", {"dataset": f"data-{index}", "steps": 120}, name=f"kai {index}")
        fsio.write_json(run.supervisor, {"schema": 1, "pid": 1, "boot_id": "x", "monotonic": 0.0})
        fsio.write_json(
            run.exit,
            {
                "schema": 1,
                "state": "SUCCEEDED",
                "reason": "completed",
                "returncode": 0,
                "ended": 0.0,
                "elapsed": 400.0,
                "error": None,
            },
        )


def metric_line(step: int) -> str:
    """As the supervisor writes it."""
    return (
        json.dumps(
            {
                "seq": step,
                "t": step * 0.5,
                "type": "metric",
                "step": step,
                "max_steps": LINES + 1000,
                "loss": 3 * math.exp(-step / 20000),
                "lr": 1e-3,
                "grad_norm": 1.0,
                "s_per_step": 0.5,
                "tokens_per_s": 165.0,
                "memory_bytes": 1_500_000_000,
            }
        )
        + "\n"
    )


def milliseconds(function: Callable[[], object], repeats: int) -> float:
    """Median over repeats."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def main() -> int:
    """Make the runs in a temporary workspace and measure."""
    from core.jobs import api, metrics

    make_finished_runs(RUNS)
    listing = milliseconds(api.list_runs, 7)

    run = api.create("train", {}, name="long")
    with run.metrics.open("w") as file:
        file.writelines(metric_line(step) for step in range(1, LINES + 1))
    first = milliseconds(lambda: metrics.MetricsReader(run.metrics).refresh(), 7)

    reader = metrics.MetricsReader(run.metrics)
    reader.refresh()
    step = LINES

    def look() -> None:
        nonlocal step
        with run.metrics.open("a") as file:
            file.writelines(metric_line(step + i) for i in range(1, 11))
        step += 10
        points = reader.refresh().points
        assert len(points) <= metrics.MAX_POINTS
        api.status(run)

    again = milliseconds(look, 21)
    print(
        f"list of {RUNS} finished runs:                 {listing:7.1f} ms "
        f"(target {LIST_TARGET_MS:.0f})"
    )
    print(
        f"first look at a run of {LINES:,} lines:       {first:7.1f} ms "
        f"(target {LOOK_TARGET_MS:.0f})"
    )
    print(
        f"next look, 10 new lines, with its status:    {again:7.1f} ms "
        f"(target {LOOK_TARGET_MS:.0f})"
    )
    return int(listing > LIST_TARGET_MS or max(first, again) > LOOK_TARGET_MS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PERSONA_HOME"] = folder
        sys.exit(main())
