"""What a large file of others may cost."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.data import importer
from core.data.importer import import_file
from core.errors import UserError, UserErrors
from core.evaluation import userprobes
from core.persona.packfile import read_document, to_pack
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


def test_problems_of_a_pack_are_told_up_to_a_hundred(tmp_path: Path) -> None:
    """The line of each was looked for from the top: 100,000 of them took hours."""
    path = tmp_path / "pack.yaml"
    lines = "".join(f"a{i}: 1\n" for i in range(5000))
    path.write_text(f"schema: persona/1\nextends: assistant\n{lines}")
    with pytest.raises(UserErrors, match="5000 problems") as caught:
        to_pack(read_document(path))
    told = caught.value.problems
    assert len(told) == 101 and told[-1].what == "4,900 more are not listed here"


def test_a_probes_file_of_pages(tmp_path: Path) -> None:
    path = tmp_path / "probes.yaml"
    path.write_text("schema: probes/1\nprobes:\n" + "- {prompt: aaaaaaaaaa}\n" * 100_000)
    with pytest.raises(UserError, match="has at most"):
        userprobes.read(path)
    path.write_text("schema: probes/1\nprobes:\n" + "- 1\n" * 5000)
    with pytest.raises(UserErrors) as caught:
        userprobes.read(path)
    assert len(caught.value.problems) == 101


def test_an_upload_of_too_many_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """45 MB of "a,b" are eleven million rows: minutes and gigabytes in the server."""
    monkeypatch.setattr(importer, "MAX_UPLOAD_ROWS", 300)
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n" + "a,b\n" * 400)
    with pytest.raises(UserError, match="more than 300 rows"):
        import_file(io.BytesIO(path.read_bytes()))
    assert len(import_file(path, max_bytes=None).rows) == 400


def test_a_report_of_many_keys_is_short() -> None:
    rows = [
        {"instruction": f"[NAME{i}]", "output": "b", f"key {i}": 1}
        for i in range(1000)
    ]  # fmt: skip
    report = import_file(io.BytesIO(b"\n".join(json.dumps(row).encode() for row in rows)))
    assert len(report.ignored) == 201 and report.ignored["(others)"].count == 800
    assert len(report.placeholders) <= 201
