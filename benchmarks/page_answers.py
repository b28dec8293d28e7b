"""How long each page takes to draw again in a full workspace.

    python benchmarks/page_answers.py [--personas 200] [--runs 1000] [--lines 100000] [--draws 5]

Datasets of 200 personas, 1,000 finished runs and one run of 100,000 metric lines, drawn by
Streamlit's test driver. Prints processor and wall milliseconds of a redraw (the median) and how
much memory the process gained over the draws. Exits with 1 if a page takes more than 500 ms of
processor time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ["PERSONA_HOME"] = tempfile.mkdtemp(prefix="pages-benchmark-")
PAGES = ["Start", "1_Dataset", "2_Train", "3_Merge", "4_Compare"]
LIMIT_MS = 500.0


def fill(personas: int, runs: int, lines: int) -> None:
    """The workspace, as its own writers leave it."""
    from benchmarks.status_speed import make_finished_runs, metric_line
    from core.conversation import Conversation
    from core.data import store
    from core.jobs import api

    turns = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "P."}]
    for index in range(personas):
        row = Conversation.from_row({"id": "1", "messages": turns})
        said = {"persona": "assistant", "name": f"Persona {index}", "maker": "Lab"}
        store.save(f"persona-{index}", [row], extra=said)
    make_finished_runs(runs)
    big = api.create("train", {"model": "bundled", "dataset": "persona-0"}, name="big")
    with big.metrics.open("w") as file:
        file.writelines(metric_line(step) for step in range(1, lines + 1))


def main() -> int:
    """Fill it, then draw each page again and again."""
    import psutil
    from streamlit.testing.v1 import AppTest

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--personas", type=int, default=200)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    fill(args.personas, args.runs, args.lines)
    slow = []
    for page in PAGES:
        app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=300).run()
        if page != "Start":
            app.switch_page(f"pages/{page}.py").run()
        assert not app.exception, app.exception
        app.run()
        before, times, walls = psutil.Process().memory_info().rss, [], []
        for _ in range(args.draws):
            cpu, start = time.process_time(), time.perf_counter()
            app.run()
            times.append(1000 * (time.process_time() - cpu))
            walls.append(1000 * (time.perf_counter() - start))
        gained = (psutil.Process().memory_info().rss - before) / 1e6
        middle = statistics.median(times)
        slow += [page] if middle > LIMIT_MS else []
        print(
            f"{page:10} processor {middle:4.0f} ms, wall {statistics.median(walls):5.0f} ms, "
            f"memory {gained:+.1f} MB",
            flush=True,
        )
    return int(bool(slow))


if __name__ == "__main__":
    sys.exit(main())
