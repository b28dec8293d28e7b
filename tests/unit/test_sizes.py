"""What a large file of others may cost."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from core.data.importer import import_file

LINE = json.dumps(
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
)


def test_18_a_line_of_200_mb_costs_no_memory(tmp_path: Path) -> None:
    """The row is left out and named, and its neighbours are read."""
    path = tmp_path / "long.jsonl"
    with path.open("wb") as file:
        file.write(LINE.encode() + b"\n")
        for _ in range(200):
            file.write(b"x" * 10**6)
        file.write(b"\n" + LINE.encode() + b"\n")
    tracemalloc.start()
    try:
        report = import_file(path, max_bytes=None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(report.rows) == 2
    assert [problem.line for problem in report.problems] == [2]
    assert peak < 40 * 10**6
