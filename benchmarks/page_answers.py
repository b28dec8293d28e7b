"""How long each page takes to draw again in a full workspace.

    python benchmarks/page_answers.py [--personas 200] [--runs 1000] [--lines 100000] [--draws 5]
        [--sessions 20] [--minutes 10]

Datasets of 200 personas, 1,000 finished runs and one run of 100,000 metric lines, drawn by
Streamlit's test driver, with so many sessions open. Prints processor and wall milliseconds of a
redraw (the median); then one of the sessions after another redraws its page for ``--minutes``, and
each minute prints what memory the process holds. Exits with 1 if a page takes more than 500 ms of
processor time, or if memory grows by more than 5 % from the second fifth of the time to the last.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamlit.testing.v1 import AppTest

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


def open_at(page: str) -> AppTest:
    """A session that shows ``page``; drawn twice, for the first time imports what is needed."""
    from streamlit.testing.v1 import AppTest

    app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=300).run()
    if page != "Start":
        app.switch_page(f"pages/{page}.py").run()
    assert not app.exception, app.exception
    return app.run()


def answers(page: str, app: AppTest, draws: int) -> bool:
    """Print what a redraw takes; returns whether it is fast enough."""
    times, walls = [], []
    for _ in range(draws):
        cpu, start = time.process_time(), time.perf_counter()
        app.run()
        times.append(1000 * (time.process_time() - cpu))
        walls.append(1000 * (time.perf_counter() - start))
    middle = statistics.median(times)
    wall = statistics.median(walls)
    print(f"{page:10} processor {middle:4.0f} ms, wall {wall:5.0f} ms", flush=True)
    return middle <= LIMIT_MS


def memory(apps: list[AppTest], minutes: float) -> bool:
    """Redraw in turn, one a second; returns whether the memory stays."""
    import psutil

    held, said, start = [], 0, time.monotonic()
    for turn in itertools.count():
        gone = time.monotonic() - start
        if gone > 60 * minutes:
            break
        apps[turn % len(apps)].run()
        held.append(psutil.Process().memory_info().rss / 1e6)
        if gone // 60 >= said:
            said += 1
            print(f"minute {gone / 60:4.1f}: {turn + 1} draws, {held[-1]:.0f} MB", flush=True)
        time.sleep(max(0.0, start + turn + 1 - time.monotonic()))
    fifth = max(1, len(held) // 5)
    early, late = statistics.median(held[fifth : 2 * fifth]), statistics.median(held[-fifth:])
    print(f"memory: {early:.0f} MB early, {late:.0f} MB at the end ({late / early - 1:+.1%})")
    return late <= 1.05 * early


def main() -> int:
    """Fill it, open the sessions, draw each page again and again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--personas", type=int, default=200)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    args = parser.parse_args()
    fill(args.personas, args.runs, args.lines)
    apps = [open_at(PAGES[i % len(PAGES)]) for i in range(max(args.sessions, len(PAGES)))]
    fast = [answers(page, app, args.draws) for page, app in zip(PAGES, apps, strict=False)]
    return int(not all(fast) or not memory(apps, args.minutes))


if __name__ == "__main__":
    sys.exit(main())
