"""Twenty windows on one run of 100,000 metric lines: seconds until all have been drawn again.

    python benchmarks/train_page_sessions.py [--sessions 20] [--lines 100000]

The panel that renews itself on the Train page (banners, figures, curves, tabs), drawn by the
test driver of Streamlit in one thread a session, as one server does it.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["PERSONA_HOME"] = tempfile.mkdtemp(prefix="sessions-benchmark-")


def make_run(lines: int) -> None:
    """A run that has printed so many steps and 2,000 samples."""
    from core.jobs import api

    run = api.create("train", {"model": "bundled"}, name="big")
    with run.metrics.open("w") as file:
        for step in range(1, lines + 1):
            row = {"t": step / 10, "type": "metric", "step": step, "max_steps": lines}
            figures = {"loss": 3 / step**0.3, "lr": 1e-3, "grad_norm": 1.0, "tokens_per_s": 99.0}
            file.write(json.dumps({**row, **figures, "memory_bytes": 1e9}) + "\n")
    with run.events.open("w") as file:
        for step in range(2000):
            sample = {"event": "sample", "step": step, "prompt": f"p{step % 5}", "reply": "r" * 200}
            file.write(json.dumps({"seq": step, "t": 1.0, **sample}) + "\n")


def panel() -> None:
    """What a window draws again every two seconds."""
    from core.jobs import api
    from core.jobs.metrics import series_of
    from pages._ui.train import charts, details

    run = api.open_run("latest")
    now = api.status(run)
    details.banners(run, now)
    series = {"a": series_of(run)}
    details.numbers(series_of(run).last)
    charts.loss_chart(series, log_scale=False)
    charts.small_charts(series)
    details.tabs(run, now)


def main() -> None:
    """Make the run, open the windows, renew them all at once."""
    from streamlit.testing.v1 import AppTest

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--lines", type=int, default=100_000)
    args = parser.parse_args()
    make_run(args.lines)
    apps = [AppTest.from_function(panel, default_timeout=120).run() for _ in range(args.sessions)]
    assert not apps[0].exception, apps[0].exception
    for what, count in (("one window", 1), (f"{args.sessions} windows", args.sessions)):
        threads = [threading.Thread(target=app.run) for app in apps[:count]]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(f"{what}: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
