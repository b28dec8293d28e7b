"""Rows of every format: round trip, checks, and what the importer says of bad files."""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.conversation import Conversation, Message
from core.data.formats import FORMATS, export_lines, export_rows, get_format
from core.data.importer import ImportReport, import_file
from core.data.json_rows import MAX_ROW_BYTES
from core.errors import UserError

pytestmark = pytest.mark.fast

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
    lambda t: t.strip() and not ("<|" in t and "|>" in t)
)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    rounds = draw(st.integers(1, 4))
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(TEXT)})
    for _ in range(rounds):
        messages.append({"role": "user", "content": draw(TEXT)})
        messages.append({"role": "assistant", "content": draw(TEXT)})
    return Conversation(
        draw(st.text("abc123-", min_size=1, max_size=8)),
        messages,
        draw(st.sampled_from(["identity", "near_miss", "rehearsal", "own"])),
        "who",
        "who_plain",
        draw(st.sampled_from(["en", "zh"])),
        draw(st.lists(st.booleans(), min_size=rounds, max_size=rounds)),
        draw(st.booleans()),
    )


def read(text: str | bytes, fmt: str | None = None) -> ImportReport:
    data = text.encode() if isinstance(text, str) else text
    return import_file(io.BytesIO(data), fmt=fmt)


def messages(*turns: tuple[str, object], **extra: object) -> str:
    rows = [{"role": role, "content": text} for role, text in turns]
    return json.dumps({"messages": rows, **extra}, ensure_ascii=False)


GOOD = messages(("user", "Hi"), ("assistant", "Hello"))


@pytest.mark.parametrize("fmt", FORMATS)
@given(row=conversations())
def test_every_format_round_trips(fmt: str, row: Conversation) -> None:
    report = read("".join(export_lines([row], fmt)))
    assert not report.problems
    if row.messages[-1]["content"] != "<nooutput>":
        assert report.rows == [row]


@pytest.mark.parametrize("fmt", FORMATS)
def test_lines_and_array_give_the_same(fmt: str) -> None:
    rows = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": f'q\n{i} ] }} \\" [,'},
                {"role": "assistant", "content": "a,\\"},
            ],
        )
        for i in range(300)
    ]
    lines = "".join(export_lines(rows, fmt))
    array = "[\n" + ",\n".join(lines.splitlines()) + "\n]\n"
    pretty = json.dumps([json.loads(line) for line in lines.splitlines()], indent=2)
    assert read(lines).rows == read(array).rows == read(pretty).rows == rows


def test_other_tools_spellings() -> None:
    sharegpt = json.dumps(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "chatgpt", "value": "b"}]}
    )
    roles = json.dumps(
        {"conversations": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    )
    alpaca = json.dumps({"instruction": "Add", "input": "1 2", "output": "3"})
    report = read("\n".join([sharegpt, roles, alpaca]))
    assert [r.messages[0]["content"] for r in report.rows] == ["a", "a", "Add\n1 2"]
    assert [r.locale for r in report.rows] == ["en", "en", "en"]
    assert len({r.id for r in report.rows}) == 3, "equal ids are made unique"


def test_keys_that_are_not_read_are_reported() -> None:
    report = read(messages(("user", "a"), ("assistant", "b"), source="web", tags=["x"]))
    assert {k: (v.count, v.example) for k, v in report.ignored.items()} == {
        "source": (1, "'web'"),
        "tags": (1, "a list of 1"),
    }


def test_locale_is_told_from_the_script() -> None:
    row = read(messages(("user", "你是谁？"), ("assistant", "我是 Luna。"))).rows[0]
    assert row.locale == "zh"


@pytest.mark.parametrize(
    ("line", "field", "what"),
    [
        (messages(("tool", "x"), ("assistant", "y")), "messages[0].role", "unknown role 'tool'"),
        (
            messages(("user", "a"), ("user", "b"), ("assistant", "c")),
            "messages[1].role",
            "user where assistant is expected",
        ),
        (messages(("assistant", "a")), "messages[0].role", "assistant where user"),
        (
            messages(("user", "a"), ("assistant", "b"), ("user", "c")),
            "messages[2].role",
            "ends with the user turn",
        ),
        (
            messages(("user", "a"), ("system", "b"), ("assistant", "c")),
            "messages[1].role",
            "system where",
        ),
        (messages(("user", "  "), ("assistant", "b")), "messages[0].content", "empty"),
        (messages(("user", "a"), ("assistant", None)), "messages[1].content", "empty"),
        (
            messages(("user", [{"type": "image_url"}]), ("assistant", "b")),
            "messages[0].content[0]",
            "image_url",
        ),
        (
            messages(("user", "a<|im_end|>"), ("assistant", "b")),
            "messages[0].content",
            "<|im_end|>",
        ),
        ('{"messages": []}', "messages", "no turns"),
        ('{"messages": "hi"}', "messages", "not a list"),
        ('{"messages": ["hi"]}', "messages[0]", "not an object"),
        (
            '{"messages":[{"role":"user","content":"\\ud800"},{"role":"assistant","content":"b"}]}',
            "messages[0].content",
            "surrogate",
        ),
        ('{"data": ["a", "b", "c"]}', "data[2]", "ends with the user turn"),
        ('{"conversation": [{"input": "a"}]}', "conversation[0].output", "empty"),
        ('{"instruction": "a", "output": "<nooutput>"}', "output", "<nooutput>"),
        ('{"instruction": "a", "output": "b", "history": [["x"]]}', "history[0]", "pair"),
        ('{"text": "a"}', "", "no known key among text"),
        ("{'messages': []}", "", "not JSON"),
        ("[1]", "", "int where an object"),
        ('{"id": ' + "9" * 5000 + "}", "", "not JSON"),
        ('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}", "", "nested too deeply"),
        (messages(("user", "a"), ("assistant", "b"), loss=[True, False]), "loss", "2 loss entries"),
        (messages(("user", "a"), ("assistant", "b"), loss=["maybe"]), "loss[0]", "'maybe'"),
    ],
)
def test_a_bad_row_is_named_and_the_good_ones_load(line: str, field: str, what: str) -> None:
    report = read("\n".join([GOOD, line, GOOD]) + "\n")
    assert len(report.rows) == 2
    (problem,) = report.problems
    assert problem.line == 2
    assert problem.field == field
    assert what in problem.what
    assert problem.fix


def test_loss_on_some_replies_only() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", "loss": "False"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": "d"},
        ]
    }
    (problem,) = read(json.dumps(row)).problems
    assert (problem.field, problem.line) == ("messages[3].loss", 1)
    row["messages"][3]["loss"] = True  # type: ignore[index]
    assert read(json.dumps(row)).rows[0].loss == [False, True]


def test_bom_crlf_blank_lines_and_no_last_line_break() -> None:
    report = read(b"\xef\xbb\xbf" + GOOD.encode() + b"\r\n\r\n  \r\n" + GOOD.encode())
    assert len(report.rows) == 2
    assert report.duplicates == 1
    assert not report.problems


def test_invalid_utf8_costs_one_row() -> None:
    report = read(GOOD.encode() + b'\n{"messages": "\xff"}\n' + GOOD.encode())
    assert len(report.rows) == 2
    assert "not UTF-8" in report.problems[0].what


def test_a_giant_line_costs_one_row_and_no_memory() -> None:
    giant = b'{"messages": "' + b"x" * (3 * MAX_ROW_BYTES) + b'"}'
    report = read(GOOD.encode() + b"\n" + giant + b"\n" + GOOD.encode())
    assert len(report.rows) == 2
    assert report.problems[0].line == 2
    assert "3.0 MB" in report.problems[0].what
    in_array = read(b"[" + GOOD.encode() + b",\n" + giant + b",\n" + GOOD.encode() + b"]")
    assert len(in_array.rows) == 2
    assert in_array.problems[0].line == 2


def test_a_cut_array_keeps_what_was_whole() -> None:
    report = read(f"[{GOOD}, {GOOD}, {GOOD[:20]}")
    assert len(report.rows) == 2
    assert "cut off" in report.problems[0].what


def test_an_array_with_a_bad_element_in_the_middle() -> None:
    report = read(f"[\n{GOOD},\n,\n{{'x': 1}},\n{GOOD}\n]")
    assert len(report.rows) == 2
    assert [p.line for p in report.problems] == [3, 4]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "holds no rows"),
        (b"\xef\xbb\xbf \n\n", "holds no rows"),
        (b"[]", "holds no rows"),
        (b"\x1f\x8b\x08abc", "cannot be unpacked"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"PK\x03\x04", "zip"),
        (b"PAR1....", "Parquet"),
    ],
)
def test_files_that_are_refused_whole(data: bytes, what: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        read(data)
    assert error.value.fix


def test_size_limit(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    with path.open("wb") as file:
        file.truncate(200 * 10**6)  # sparse: nothing is written
    started = time.monotonic()
    with pytest.raises(UserError, match="too large"):
        import_file(path)
    assert time.monotonic() - started < 1


def test_problems_are_capped_and_counted() -> None:
    report = import_file(io.BytesIO(b"{}\n" * 2000), problem_limit=10)
    assert (report.bad, len(report.problems)) == (2000, 10)


@given(st.binary(max_size=400))
def test_no_bytes_make_the_importer_fail_otherwise(data: bytes) -> None:
    for prefix in (b"", b"[", b'{"messages": '):
        with contextlib.suppress(UserError):
            read(prefix + data)


def test_export_tells_what_xtuners_alpaca_reader_loses(tmp_path: Path) -> None:
    single = Conversation(
        "a", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    )
    multi = Conversation("b", [*single.messages, *single.messages])
    assert export_rows([single], "alpaca", tmp_path / "a.jsonl").notes == []
    exported = export_rows([single, multi], "alpaca", tmp_path / "b.jsonl")
    assert exported.rows == 2
    assert "1 of 2 rows" in exported.notes[0]


def test_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="messages, xtuner, sharegpt, alpaca, ultrachat"):
        get_format("csv")
