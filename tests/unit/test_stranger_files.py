"""Files of other tools that nobody had shown to the importer: read right, or refused by name.

Eighty were written in one sitting and tried on the command line. Eight were falsified or cut in
silence, and are marked with "was"; the rest say that what works for one tool works for its kin.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.test_wild_inputs import PAIR, QA, read, talks

SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}


def _spans(*learned: bool) -> dict[str, Any]:
    spans = [{"begin_offset": i, "end_offset": i, "train": on} for i, on in enumerate(learned)]
    return {"messages": [PAIR[0], {**PAIR[1], "train_detail": spans}]}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"conversations": [{"role": "human", "value": "q"}, SHARE[1]]}, id="mixed"),
        pytest.param({"conversations": [{"from": "user", "content": "q"}, SHARE[1]]}, id="mixed 2"),
        pytest.param(
            {"conversations": [{**SHARE[0], "markdown": None, "text": None}, SHARE[1]]}, id="nulls"
        ),
        pytest.param({"messages": [PAIR[0], {"role": "Chatbot", "content": "r"}]}, id="Cohere"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"text": "q"}]}, PAIR[1]]}, id="Bedrock"
        ),
        pytest.param(
            {
                "contents": [
                    {"role": "user", "parts": [{"text": "q"}]},
                    {"role": "model", "parts": [{"text": "r"}]},
                ]
            },
            id="Gemini",
        ),
        pytest.param(
            {
                "chat_messages": [
                    {"sender": "human", "text": "q", "content": [{"type": "text", "text": "q"}]},
                    {"sender": "assistant", "text": "r"},
                ]
            },
            id="Claude export",
        ),
        pytest.param(
            {"messages": {"role": ["user", "assistant"], "content": ["q", "r"]}},
            id="columns of turns, as datasets keeps them",
        ),
        pytest.param({"inputs": "q", "targets": "r"}, id="FLAN"),
        pytest.param(
            {"instruction": "Human:q\nAssistant:", "input": "", "output": "r"},
            id="BELLE (was: the marks became the question)",
        ),
        pytest.param(
            {
                "text": "<bos><start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\nr"
                "<end_of_turn>\n"
            },
            id="Gemma as text",
        ),
        pytest.param({"text": "<|user|>\nq<|end|>\n<|assistant|>\nr<|end|>"}, id="Phi as text"),
        pytest.param({"text": "<|user|>\nq</s>\n<|assistant|>\nr</s>"}, id="Zephyr as text"),
        pytest.param(_spans(True, True), id="Axolotl, all of it learned"),
        pytest.param({"messages": [PAIR[0], {**PAIR[1], "prefix": False}]}, id="Mistral"),
    ],
)
def test_read_right(row: dict[str, Any]) -> None:
    assert talks(read([row])) == [QA]


@pytest.mark.parametrize(
    ("row", "field", "what"),
    [
        pytest.param(_spans(True, False), "messages[1].train_detail", "not to be learned",
                     id="Axolotl's spans (was: learned)"),
        pytest.param({"question": "q", "answer": 1e999}, "answer", "too large",
                     id="infinity (was: the answer 'inf')"),
        ({"messages": [PAIR[0], CALL, {"role": "tool", "content": "5"}, PAIR[1]]},
         "messages[1].tool_calls", "a call of a tool"),
        ({"messages": [PAIR[0], {"role": "assistant", "content": None, "refusal": "No."}]},
         "messages[1].content", "empty"),
        ({"conversations": [*SHARE, {"from": "system", "value": "S"}]},
         "conversations[2].from", "system where user"),
        ({"question": "q", "answers": ["r", "s"]}, "", "no answer among the keys"),
        ({"custom_id": "1", "response": {"body": {}}}, "", "no question among the keys"),
        ({"id": "1", "context": "C", "question": "q", "answers": {"text": ["r"]}}, "",
         "--columns answer=KEY"),
        ({"text": "A document."}, "", "no known key among text"),
        ({"messages": [PAIR[0], {"role": "Luna", "content": "r"}]}, "messages[1].role", "'Luna'"),
        ({"messages": [PAIR[0], {"role": "assistant", "content": [{"type": "thinking"}]}]},
         "messages[1].content[0]", "'thinking'"),
    ],
)  # fmt: skip
def test_refused_by_name(row: dict[str, Any], field: str, what: str) -> None:
    (problem,) = read("\n".join([json.dumps(row)])).problems
    assert problem.field == field
    assert what in problem.what + problem.fix


def test_a_text_that_the_dataset_viewer_has_cut() -> None:
    """Was: the cut text was trained."""
    whole = {"row_idx": 0, "row": {"messages": PAIR}, "truncated_cells": []}
    cut = {"row_idx": 1, "row": {"messages": PAIR}, "truncated_cells": ["messages"]}
    report = read({"rows": [whole, cut], "num_rows_total": 2})
    assert len(report.rows) == 1
    assert report.problems[0].what == "the dataset viewer has cut this text"


def test_a_task_stands_above_its_instances() -> None:
    """Was: the instances alone, without what was asked."""
    task = {"id": "s", "instruction": "Do", "instances": [{"input": "i", "output": "o"}] * 2}
    report = read(task)
    assert talks(report) == [["u:Do\ni", "a:o"]] * 2
    assert list(report.ignored) == ["id"]


def test_control_characters_are_said() -> None:
    """Was: NUL and bell went into training without a word."""
    report = read([{"question": "a\x00b", "answer": "c\x07d"}])
    assert talks(report) == [["u:a\x00b", "a:c\x07d"]]
    assert any("control characters" in line for line in report.lines())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl"])
def test_utf_16_without_a_mark(encoding: str, name: str) -> None:
    """Was: a NUL before every letter."""
    text = "question,answer\r\nq,r\r\n" if name == "x.csv" else '{"question": "q", "answer": "r"}\n'
    report = read(text.encode(encoding), name)
    assert talks(report) == [QA]
    assert report.encoding == encoding


def test_cells_that_hold_nothing() -> None:
    """Was: a question "nan" with the answer "N/A"."""
    report = read("question,answer,system\nq,r,NaN\nnan,N/A,\nq2,#N/A,\n", "x.csv")
    assert [(p.line, p.field) for p in report.problems] == [(3, "question"), (4, "answer")]
    assert [[m["content"] for m in row.messages] for row in report.rows] == [["q", "r"]]


def test_files_put_behind_one_another_keep_their_marks() -> None:
    line = '{"question": "q", "answer": "r"}\n'
    assert talks(read(f"\ufeff{line}\ufeff{line}")) == [QA, QA]


def test_empty_columns_are_not_worth_a_word() -> None:
    report = read("question,answer,,\nq,r,,\n", "x.csv")
    assert not report.ignored
