"""What a large file of others may cost."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from core.data import importer
from core.data.importer import import_file
from core.errors import UserError, UserErrors
from core.evaluation import userprobes
from core.jobs.metrics import MetricsReader
from core.models import bundled, gguf_header, prepared
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


def test_a_gguf_that_announces_more_than_it_holds(tmp_path: Path) -> None:
    """Sixty bytes announced 2^60 numbers, and the reader went over them one by one."""
    path = tmp_path / "x.gguf"
    array = struct.pack("<QcIIQ", 1, b"a", 9, 4, 1 << 60)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array)
    with pytest.raises(UserError, match="announces more"):
        prepared.from_gguf(path)
    gguf_header.require_whole(bundled._gguf_path())  # a real one


def test_a_line_of_metrics_without_an_end(tmp_path: Path) -> None:
    """It was read from each of 1,600 places to its end: minutes, at every redraw."""
    path = tmp_path / "metrics.jsonl"
    metric = b'{"type":"metric","step":%d,"max_steps":9,"loss":1.0,"seq":1,"t":1}\n'
    path.write_bytes(metric % 1 + b"x" * (100 << 20))
    reader = MetricsReader(path)
    assert reader.refresh().sampled
    with path.open("ab") as file:
        file.write(b"y" * (30 << 20) + b"\n" + metric % 7)
    assert reader.refresh().last["step"] == 7


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
