"""What a large file of others may cost."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from streamlit.testing.v1 import AppTest

from core.data.importer import import_file
from tests.fakes.upload_page import importing

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


def test_uploads_one_after_the_other_are_not_all_kept(workspace: Path) -> None:
    """Twenty of 45 MB kept 860 MB; here ten of 1 MB."""
    app = AppTest.from_function(importing, default_timeout=60).run()
    size = 10**6
    row = LINE.encode() + b"\n"
    for index in range(10):
        data = row * (size // len(row)) + b"\n" * index
        app.file_uploader[0].upload(f"{index}.jsonl", data, "application/json").run()
        assert not app.exception
        assert size / 2 < app.session_state["held"] < 1.5 * size
    next(b for b in app.button if b.label == "Save").click().run()
    assert (workspace / "datasets").is_dir()
    assert app.session_state["held"] == 0
