"""Twenty windows on one live run of 100,000 metric lines: seconds until all are drawn again.

    python benchmarks/train_page_sessions.py [--sessions 20] [--lines 100000]

The panel that renews itself on the Train page (banners, figures, curves, tabs), drawn by the
test driver of Streamlit in one thread a session, as one server does it. The metrics grow by a line
before each round. Exits with 1 if a round of all windows takes more than a second of processor time
(the goal; wall time is printed too, and is longer on a loaded machine).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.jobs.locks import FileLock
    from core.paths import RunPaths

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["PERSONA_HOME"] = tempfile.mkdtemp(prefix="sessions-benchmark-")


def metric(step: int, lines: int) -> str:
    """As a supervisor writes it."""
    row = {"t": step / 10, "type": "metric", "step": step, "max_steps": lines, "seq": step}
    figures = {"loss": 3 / step**0.3, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 99.0}
    return json.dumps({**row, **figures, "memory_bytes": 1e9}) + "\n"


def make_run(lines: int) -> tuple[RunPaths, FileLock]:
    """A run that has printed so many steps and 2,000 samples, and the lock that says it lives."""
    from core.jobs import api
    from core.jobs.locks import FileLock

    run = api.create("train", {"model": "bundled"}, name="big")
    lock = FileLock(run.lock)
    assert lock.acquire()
    run.supervisor.write_text("{}")
    with run.metrics.open("w") as file:
        file.writelines(metric(step, lines) for step in range(1, lines + 1))
    with run.events.open("w") as file:
        for step in range(2000):
            sample = {"event": "sample", "step": step, "prompt": f"p{step % 5}", "reply": "r" * 200}
            file.write(json.dumps({"seq": step, "t": 1.0, **sample}) + "\n")
    return run, lock


def panel() -> None:
    """What a window draws again every two seconds."""
    from core.jobs import api
    from core.jobs.metrics import series_of
    from core.paths import RunPaths, runs_dir
    from pages._ui.train import charts, details

    run = RunPaths(next(p for p in runs_dir().iterdir() if p.is_dir()))
    now = api.status(run)
    details.banners(run, now)
    series = {"a": series_of(run)}
    details.numbers(series_of(run).last)
    charts.loss_chart(series, log_scale=False)
    charts.small_charts(series)
    details.tabs(run, now)


def main() -> int:
    """Make the run, open the windows, renew them all at once."""
    from streamlit.testing.v1 import AppTest

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--lines", type=int, default=100_000)
    args = parser.parse_args()
    run, _lock = make_run(args.lines)
    apps = [AppTest.from_function(panel, default_timeout=120).run() for _ in range(args.sessions)]
    assert not apps[0].exception, apps[0].exception
    cost = 0.0
    for what, count in (("one window", 1), (f"{args.sessions} windows", args.sessions)):
        for round_ in range(3):
            with run.metrics.open("a") as file:
                file.write(metric(args.lines + round_ + 10 * count, args.lines))
            threads = [threading.Thread(target=app.run) for app in apps[:count]]
            start, before = time.perf_counter(), time.process_time()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            cost = time.process_time() - before
            print(f"{what}: {time.perf_counter() - start:.2f} s, processor {cost:.2f} s")
    return int(cost > 1.0)


if __name__ == "__main__":
    sys.exit(main())
