"""Files as other tools write them: the right rows, and everything else said."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.commands.main import main
from core.data import placeholders, store
from core.data.importer import ImportReport, import_file
from core.errors import UserError
from core.paths import TEMPLATES
from core.persona.persona import load_persona

pytestmark = pytest.mark.fast

CASES = Path(__file__).parents[1] / "data" / "cases"


def read(data: object, name: str = "rows.jsonl", **options: Any) -> ImportReport:
    """Import what is written to a file of this name; objects as JSON, one a line."""
    if isinstance(data, list):
        data = "\n".join(json.dumps(row, ensure_ascii=False) for row in data)
    if isinstance(data, dict):
        data = json.dumps(data, ensure_ascii=False)
    file = io.BytesIO(data if isinstance(data, bytes) else str(data).encode())
    file.name = name
    return import_file(file, **options)


def talks(report: ImportReport) -> list[list[str]]:
    """``["s:Be brief.", "u:Hi", "a:Hello"]`` for each row; no problems allowed."""
    assert not report.problems, [str(p) for p in report.problems]
    return [[f"{m['role'][0]}:{m['content']}" for m in row.messages] for row in report.rows]


def case(name: str) -> ImportReport:
    return import_file(CASES / name)


QA = ["u:q", "a:r"]
PAIR = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]


# --- the cases of public bug reports ---------------------------------------------------------


def test_a_system_text_beside_the_turns_is_the_first_turn() -> None:
    keeper = "s:You are Tamsin, the lighthouse keeper of Pier Nine."
    assert talks(case("system-as-row-key.jsonl")) == [[keeper, "u:Name?", "a:Tamsin."]]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
    share = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]
    rows: list[dict[str, Any]] = [
        {"messages": turns},
        {"conversations": share},
        {"conversation": [{"input": "q", "output": "r"}]},
        {"data": ["q", "r"]},
        {"instruction": "q", "output": "r"},
        {"query": "q", "response": "r"},
    ]
    assert talks(read([{**row, "system": "S"} for row in rows])) == [["s:S", *QA]] * 6
    assert talks(read([{**row, "system_prompt": "S"} for row in rows])) == [["s:S", *QA]] * 6
    both = {"system": "S", "messages": [{"role": "system", "content": "S"}, *turns]}
    assert talks(read([both])) == [["s:S", *QA]]
    (problem,) = read([{**both, "system": "T"}]).problems
    assert problem.field == "system"


@pytest.mark.parametrize(
    "key", ["weight", "train", "training", "loss", "loss_scale", "loss_weight"]
)
@pytest.mark.parametrize(
    ("off", "on"), [(0, 1), (False, True), ("false", "true"), ("0", "1"), (0.0, 1.0)]
)
def test_a_turn_that_is_not_to_be_learned_is_not(key: str, off: object, on: object) -> None:
    assert case("turn-weight.jsonl").rows[0].loss == [False, True]
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", key: off},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", key: on},
    ]
    assert read([{"messages": turns}]).rows[0].loss == [False, True]
    shared = [
        {"from": t["role"], "value": t["content"], **({key: t[key]} if key in t else {})}
        for t in turns
    ]
    assert read([{"conversations": shared}]).rows[0].loss == [False, True]
    report = read([{"messages": turns[:2]}, {"instruction": "a", "output": "b", key: off}])
    assert [row.loss for row in report.rows] == [[False], [False]]


def test_a_missing_weight_means_learn() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "user", "content": "c", "train": False},
        {"role": "assistant", "content": "d"},
    ]
    assert read([{"messages": turns}]).rows[0].loss == [False, True]
    turns[1]["train"] = True
    assert "contradict" in read([{"messages": turns}]).problems[0].what
    turns[1] = {"role": "assistant", "content": "b", "weight": 0.5}
    assert "0.5 is not true or false" in read([{"messages": turns}]).problems[0].what


def test_a_user_turn_cannot_be_learned_and_that_is_said() -> None:
    turns = [
        {"role": "user", "content": "a", "train": True},
        {"role": "assistant", "content": "b", "train": True},
    ]
    report = read([{"messages": turns}])
    assert list(report.ignored) == ["messages[].train of a user turn"]


def test_two_arrays_give_all_rows() -> None:
    report = case("two-arrays-joined.json")
    assert [row.messages[1]["content"] for row in report.rows] == [
        "Tamsin.", "Pier Nine.", "4.", "Lima.", "Hi!",
    ]  # fmt: skip
    assert not report.problems


def test_empty_system_turns_are_dropped_and_the_rows_kept() -> None:
    assert [len(row.messages) for row in case("empty-system-turn.jsonl").rows] == [2, 2, 2, 2]


def test_alpaca_as_it_is_found() -> None:
    report = case("alpaca-odds.jsonl")
    assert talks(report) == [
        ["u:Who are you?", "a:Tamsin."],
        ["u:Explain tides.", "a:The moon pulls the sea."],
        ["u:Name three birds.", "a:Gull, tern, auk."],
        ["u:What is 6 x 7?", "a:42"],
        ["u:Name a port.", "a:Oban."],
        ["s:Be brief.", "u:Name a port.", "a:Oban.", "u:Name a cape.", "a:Wrath."],
    ]
    assert not report.ignored


@pytest.mark.parametrize(
    "nothing", ["", " ", None, "<noinput>", "<no input>", "N/A", "n/a", "NaN", "null", "无输入"]
)
def test_inputs_that_say_nothing(nothing: object) -> None:
    row = {"instruction": "q", "input": nothing, "output": "r", "history": [], "system": nothing}
    assert talks(read([row])) == [QA]


def test_line_separators_inside_texts() -> None:
    assert talks(case("line-separator-rows.jsonl")) == [
        ["u:Line one\u2028line two?", "a:Ok\x85fine."]
    ]


def test_a_table_of_questions_and_answers() -> None:
    report = case("question-answer.csv")
    assert talks(report) == [
        ["u:Who are you?", "a:I'm Tamsin, from Pier Nine."],
        ["u:Your job?", "a:Keeping the light, and the log."],
    ]
    assert report.table
    assert report.table.used == {"question": "question", "answer": "answer"}


# --- arrangements of JSON --------------------------------------------------------------------

ROW = {"instruction": "q", "input": "", "output": "r"}
LINE = json.dumps(ROW)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (f"[{LINE},{LINE}]\n[{LINE}]\n", 3),
        (f"[{LINE}][{LINE},{LINE}]", 3),
        (f"[{LINE}]\n{LINE}\n{LINE}", 3),
        (f"{LINE}{LINE} {LINE}", 3),
        (f"{LINE},\n{LINE},\n", 2),
        (json.dumps(ROW, indent=2) * 3, 3),
        ("\n".join(json.dumps(ROW, indent=4) for _ in range(3)), 3),
        (json.dumps([ROW, ROW], indent=1) + "\n" + json.dumps([ROW], indent=1), 3),
        (json.dumps({"data": [ROW, ROW]}), 2),
        (json.dumps({"version": 1, "rows": [{"row_idx": 0, "row": ROW}]}, indent=1), 1),
        (json.dumps({"instruction": ["q", "q"], "output": ["r", "r"]}), 2),
        (json.dumps({"instruction": {"0": "q", "1": "q"}, "output": {"0": "r", "1": "r"}}), 2),
        (json.dumps({"0": ROW, "1": ROW}), 2),
        ("\ufeff" + json.dumps([ROW]), 1),
        (
            json.dumps([[{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]]),
            1,
        ),
        (json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]), 1),
    ],
)
def test_every_arrangement_gives_every_row(text: str, count: int) -> None:
    for written in (text, text.replace("\n", "\r\n")):
        assert talks(read(written, "x.json")) == [QA] * count


def test_a_whole_file_in_one_object_may_be_large() -> None:
    rows = [{**ROW, "instruction": f"q{i}", "output": "x" * 2000} for i in range(1500)]
    report = read(json.dumps({"data": rows}), "x.json")
    assert len(report.rows) == 1500
    assert not report.problems


def test_a_torn_row_costs_itself_only() -> None:
    report = read(f'{LINE}\n{{"instruction": "q", "outp\n{LINE}\n{{\n{LINE}\n')
    assert [p.line for p in report.problems] == [2, 4]
    assert len(report.rows) == 3


def test_a_key_that_is_written_twice_is_named() -> None:
    (problem,) = read('{"instruction": "q", "output": "r", "output": "other"}').problems
    assert (problem.field, problem.what) == ("output", "the key is written twice")


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files(pack: Any) -> None:
    assert talks(read(pack(f"{LINE}\n{LINE}".encode()), "rows.jsonl.gz")) == [QA] * 2
    bomb = pack(b"x" * 60_000_000)
    with pytest.raises(UserError, match="too large"):
        read(bomb)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig", "gb18030"])
def test_json_in_other_encodings(encoding: str) -> None:
    rows = [{"instruction": "你是谁？", "output": "我是塔姆辛，九号码头的守塔人。"}] * 2
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    assert (
        talks(read(text.encode(encoding)))
        == [["u:你是谁？", "a:我是塔姆辛，九号码头的守塔人。"]] * 2
    )


# --- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gb18030"])
def test_tables_as_spreadsheets_save_them(delimiter: str, encoding: str) -> None:
    rows = [("问题", "答案"), ('"他说：""你好"""', '"第一行\n第二行, 完"'), ("你是谁？", "塔姆辛")]
    text = "\r\n".join(delimiter.join(row) for row in rows) + "\r\n"
    report = read(text.encode(encoding), "表.csv")
    assert talks(report) == [
        ['u:他说："你好"', "a:第一行\n第二行, 完"],
        ["u:你是谁？", "a:塔姆辛"],
    ]


def test_a_western_table() -> None:
    report = read("Question;Answer\nDéjà vu ?;Oui, à Zürich – „genau“.\n".encode("cp1252"), "a.csv")
    assert talks(report) == [["u:Déjà vu ?", "a:Oui, à Zürich – „genau“."]]
    assert report.encoding == "cp1252"


@pytest.mark.parametrize(
    ("encoding", "question", "answer"),
    [
        ("big5", "你是誰？", "我是小美"),
        ("cp932", "あなたは誰？", "私です"),
        ("cp1252", "Où ?", "Là"),
    ],
)
def test_code_pages_of_spreadsheets(encoding: str, question: str, answer: str) -> None:
    text = f"question,answer\r\n{question},{answer}\r\n"
    report = read(text.encode(encoding), "x.csv")
    assert talks(report) == [[f"u:{question}", f"a:{answer}"]]
    assert report.encoding == encoding
    assert any(encoding in line for line in report.lines())


def test_odd_headers() -> None:
    assert talks(read("sep=;\r\nquestion;answer\r\nq;r\r\n", "x.csv")) == [QA]
    twice = read("question,question,answer\nq,z,r\n", "x.csv")
    assert talks(twice) == [QA]
    assert twice.ignored["question (2)"].example == "'z'"
    turns = read("id,role,content\n1,user,q\n1,assistant,r\n", "x.csv")
    assert [p.line for p in turns.problems] == [2, 3]


def test_columns_are_guessed_shown_and_can_be_named() -> None:
    text = "nr,Frage,Antwort\n1,Wer bist du?,Tamsin bin ich.\n2,Und wo?,Am Pier Neun.\n"
    report = read(text, "a.csv")
    assert talks(report)[0] == ["u:Wer bist du?", "a:Tamsin bin ich."]
    assert report.table
    assert report.table.guessed
    assert report.ignored["nr"].count == 2
    swapped = read(text, "a.csv", columns={"question": "Antwort", "answer": "Frage"})
    assert talks(swapped)[0] == ["u:Tamsin bin ich.", "a:Wer bist du?"]


def test_a_table_without_a_header() -> None:
    report = read("Who are you?,I'm Tamsin.\nYour job?,Keeping the light.\n", "a.csv")
    assert talks(report) == [
        ["u:Who are you?", "a:I'm Tamsin."],
        ["u:Your job?", "a:Keeping the light."],
    ]


def test_a_table_is_known_by_its_header_too() -> None:
    assert talks(read("question\tanswer\nq\tr\n", "notes.txt")) == [QA]
    assert talks(read("system,prompt,completion,rating\nS,q,r,5\n", "x.csv")) == [["s:S", *QA]]
    turns = json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}])
    quoted = turns.replace('"', '""')
    assert talks(read(f'id,messages\n7,"{quoted}"\n', "x.csv")) == [QA]


def test_a_damaged_table_says_where() -> None:
    report = read('question,answer\nq,r\n"open,r\nq,r\n', "x.csv")
    assert len(report.rows) == 1
    assert report.problems[0].line == 3
    report = read("question,answer\nq,r,too,many\nq,r\n", "x.csv")
    assert report.problems[0].what == "4 cells where there are 2 columns"
    assert len(report.rows) == 1


@pytest.mark.parametrize(
    ("head", "what"),
    [(b"PK\x03\x04", "CSV"), (b"PAR1", "JSON Lines"), (b"\xd0\xcf\x11\xe0", "CSV")],
)
def test_what_is_no_text_is_refused_with_the_way_out(head: bytes, what: str) -> None:
    with pytest.raises(UserError) as error:
        read(head, "x.xlsx")
    assert what in error.value.fix


# --- rows of other tools ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"query": "q", "response": "r", "history": None}, id="ms-swift"),
        pytest.param({"question": "q", "answer": "r"}, id="q-and-a"),
        pytest.param({"prompt": "q", "completion": "r"}, id="legacy OpenAI"),
        pytest.param({"kind": "NLI", "input": "q", "target": "r"}, id="Firefly"),
        pytest.param({"conversation": [{"human": "q", "assistant": "r"}]}, id="Firefly turns"),
        pytest.param({"human": "q", "assistant": "r"}, id="human and assistant"),
        pytest.param({"Instruction ": "q", "Response": "r"}, id="capitals"),
        pytest.param({"instruction": "q", "context": "", "response": "r"}, id="Dolly"),
        pytest.param({"指令": "q", "输入": "", "输出": "r"}, id="Chinese"),
        pytest.param({"prompt": PAIR[:1], "completion": PAIR[1:]}, id="TRL prompt"),
        pytest.param({"chosen": PAIR, "rejected": PAIR}, id="TRL preference"),
        pytest.param({"prompt": "q", "chosen": PAIR, "rejected": PAIR}, id="UltraFeedback"),
        pytest.param({"instruction": "q", "input": "", "chosen": "r", "rejected": "x"}, id="DPO"),
        pytest.param(
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "r"},
                "rejected": {"from": "gpt", "value": "x"},
            },
            id="LLaMA-Factory preference",
        ),
        pytest.param({"dialogue": PAIR}, id="dialogue"),
        pytest.param({"userMessage": "q", "assistantMessage": "r"}, id="camel case"),
        pytest.param({"messages": json.dumps(PAIR)}, id="turns as text"),
        pytest.param(
            {
                "messages": [
                    {"role": "User", "content": [{"type": "text", "text": "q"}]},
                    {"role": "Assistant", "content": {"type": "text", "text": "r"}},
                ]
            },
            id="parts",
        ),
        pytest.param(
            {"messages": [{"role": "developer", "content": ""}, *PAIR], "tools": None},
            id="developer",
        ),
        pytest.param(
            {"conversations": [{"question": "q", "answer": "r"}], "images": []}, id="exchanges"
        ),
    ],
)  # fmt: skip
def test_rows_of_other_tools(row: dict[str, Any]) -> None:
    assert talks(read([row])) == [QA]


@pytest.mark.parametrize(
    ("row", "field", "what"),
    [
        ({"messages": [PAIR[0], {"role": "tool", "content": "x"}]}, "messages[1].role", "tool"),
        (
            {"conversations": [{"from": "function_call", "value": "x"}]},
            "conversations[0].from",
            "function_call",
        ),
        (
            {"messages": [PAIR[0], {"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "messages[1].tool_calls",
            "call of a tool",
        ),
        ({"messages": PAIR, "images": ["a.png"]}, "images", "picture"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
            "image_url",
        ),
        ({"instruction": "", "input": "", "output": "r"}, "instruction", "empty"),
        ({"instruction": "q", "output": None}, "output", "empty"),
        ({"instruction": "q", "output": float("nan")}, "output", "empty"),
        ({"instruction": "q", "output": {"a": 1}}, "output", "dict"),
        ({"instruction": "q", "output": ["r", "s"]}, "output[0]", "join several"),
        ({"role": "user", "content": "q"}, "", "no known key among role, content"),
        ({"text": "Once upon a time"}, "", "no known key among text"),
        ({"id": "\ud800", "messages": PAIR}, "id", "surrogate"),
        ({"intent": "\udfff", "messages": PAIR}, "intent", "surrogate"),
        ({"cluster": "a\ud912", "messages": PAIR}, "cluster", "surrogate"),
    ],
)
def test_rows_that_cannot_be_trained_are_named(row: Any, field: str, what: str) -> None:
    report = read("\n".join([LINE, json.dumps(row), LINE]))
    (problem,) = report.problems
    assert (problem.line, problem.field) == (2, field)
    assert what in problem.what + problem.fix
    assert len(report.rows) == 2


# --- written as one text, pairs, greetings, splits ---------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "\n\nHuman: q\n\nAssistant: r",
        "Human: q\n\nAssistant: r",
        "\n\nH: q\n\nA: r",
        "USER: q ASSISTANT: no mark\nASSISTANT: r",
        "User: q\nAssistant: r",
        "### Human: q### Assistant: r",
        "### Human: q\n### Assistant: r</s>",
        "### Instruction:\nq\n\n### Response:\nr",
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nq\n\n### Response:\nr<|endoftext|>",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nr<|im_end|>\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nr<|eot_id|>",
        "<s>[INST] q [/INST] r </s>",
        "<s> [INST] q [/INST] r</s>",
    ],
)
@pytest.mark.parametrize("key", ["text", "chosen", "conversation"])
def test_a_conversation_in_one_text(text: str, key: str) -> None:
    if "no mark" in text:
        assert talks(read([{key: text}])) == [["u:q ASSISTANT: no mark", "a:r"]]
    else:
        assert talks(read([{key: text}])) == [QA]


def test_several_rounds_in_one_text() -> None:
    llama = "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nq [/INST] r </s><s>[INST] t [/INST] u </s>"
    chatml = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n"
        for role, text in zip(
            ("system", "user", "assistant", "user", "assistant"), "Sqrtu", strict=True
        )
    )
    anthropic = "\n\nHuman: q\n\nAssistant: r\n\nHuman: t\n\nAssistant: u"
    assert talks(read([{"text": llama}, {"text": chatml}])) == [["s:S", *QA, "u:t", "a:u"]] * 2
    report = read([{"chosen": anthropic, "rejected": anthropic + "x"}])
    assert talks(report) == [[*QA, "u:t", "a:u"]]
    assert report.notes == {"the preferred reply of a pair was taken, the rejected one left out": 1}
    prompted = {"prompt": "\n\nHuman: q\n\nAssistant:", "completion": " r"}
    assert [t.strip() for t in talks(read([prompted]))[0]] == ["u:q", "a: r"]
    assert "unknown role" in read([{"text": "<|im_start|>tool\n{}<|im_end|>"}]).problems[0].what


def test_a_colon_in_prose_is_no_mark() -> None:
    row = {"instruction": "q", "output": "User: x\nAssistant: y"}
    assert talks(read([row])) == [["u:q", "a:User: x\nAssistant: y"]]
    assert read([{"text": "Note to User: read this"}]).problems[0].what.startswith("no known key")


@pytest.mark.parametrize(
    "row",
    [
        {
            "input": {"messages": PAIR[:1], "tools": [], "parallel_tool_calls": True},
            "preferred_output": PAIR[1:],
            "non_preferred_output": [{"role": "assistant", "content": "x"}],
        },
        {"prompt": "q", "chosen": "r", "rejected": "x"},
        {"prompt": PAIR[:1], "chosen": PAIR[1:], "rejected": PAIR[1:]},
        {"question": "q", "response_chosen": "r", "response_rejected": "x"},
        {"messages": PAIR, "rejected_response": "x"},
    ],
)
def test_of_a_pair_the_preferred_reply_is_read_and_that_is_said(row: dict[str, Any]) -> None:
    report = read([row])
    assert talks(report) == [QA]
    assert any("preferred reply of a pair was taken" in line for line in report.lines())
    assert not any("reject" in key or "preferred" in key for key in report.ignored)


def test_a_greeting_before_the_first_question_is_left_out_and_said() -> None:
    hello = {"from": "gpt", "value": "Hello!", "weight": 0}
    asked = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r", "weight": 1}]
    system = {"from": "system", "value": "S"}
    report = read([{"conversations": [hello, *asked]}, {"conversations": [system, hello, *asked]}])
    assert talks(report) == [QA, ["s:S", *QA]]
    assert [row.loss for row in report.rows] == [[True], [True]]  # of the reply that is left
    assert report.notes == {"replies before the first question were left out": 2}
    assert read([{"conversations": [hello]}]).problems[0].what.startswith("assistant where user")


@pytest.mark.parametrize("held", ["test", "validation", "eval", "dev"])
def test_rows_kept_for_a_test_are_not_trained_on(held: str) -> None:
    other = {"instruction": "t", "output": "u"}
    report = read({"train": [ROW], held: [other, other], "labels": ["a"], "version": "1"})
    assert talks(report) == [QA]
    seen = {key: value.example for key, value in report.ignored.items()}
    assert seen == {held: "a list of 2", "labels": "a list of 1", "version": "'1'"}
    assert talks(read({held: [ROW]})) == [QA]  # nothing else to train on


def test_a_folder_says_which_of_its_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="save it as JSON Lines"):
        import_file(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "dataset_info.json").write_text("{}")
    (tmp_path / "data" / "train.jsonl").write_text(LINE)
    with pytest.raises(UserError, match="is a folder") as error:
        import_file(tmp_path)
    named = error.value.fix.split("e.g. ")[1]
    assert talks(import_file(Path(named))) == [QA]  # the advice


def test_history_in_every_spelling() -> None:
    for history in (
        [["a", "b"]],
        json.dumps([["a", "b"]]),
        [{"user": "a", "assistant": "b"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    ):
        row = {"query": "q", "response": "r", "history": history}
        assert talks(read([row])) == [["u:a", "a:b", *QA]]


def test_replies_marked_as_bad_are_not_learned() -> None:
    rows = [{"messages": PAIR, "kto_tag": tag} for tag in (True, False)]
    rows += [{"prompt": "q", "completion": "r", "label": tag} for tag in (True, False)]  # type: ignore[dict-item]
    assert [row.loss for row in read(rows).rows] == [[True], [False], [True], [False]]


def test_every_key_that_is_not_read_is_said_with_count_and_example() -> None:
    rows = [
        {"messages": [{**PAIR[0], "name": "Bo"}, PAIR[1]], "source": "web", "tools": ["f"]},
        {"messages": PAIR, "kind": "NLI", "locale": "klingon", "source": "web"},
        {"instruction": "q", "output": "r", "bad\ud800key": 1},
    ]
    seen = {k: (v.count, v.example) for k, v in read(json.dumps(rows)).ignored.items()}
    assert seen == {
        "messages[].name": (1, "'Bo'"),
        "source": (2, "'web'"),
        "tools": (1, "a list of 1"),
        "kind": (1, "'NLI'"),
        "locale": (1, "'klingon'"),
        "bad?key": (1, "'1'"),
    }


def test_reasoning_stays_with_its_reply() -> None:
    turns = [PAIR[0], {"role": "assistant", "content": "r", "reasoning_content": "Hm.\n"}]
    report = read([{"messages": turns}])
    assert talks(report) == [["u:q", "a:<think>\nHm.\n</think>\n\nr"]]
    assert any("reasoning" in note for note in report.notes)


def test_thirty_thousand_equal_rows_take_seconds() -> None:
    started = time.process_time()
    report = read("\n".join([LINE] * 30_000))
    assert len({row.id for row in report.rows}) == 30_000
    assert time.process_time() - started < 20


# --- placeholders ----------------------------------------------------------------------------


def test_placeholders_are_reported_and_filled_on_request() -> None:
    report = case("placeholders-alpaca.json")
    assert {k: v.count for k, v in report.placeholders.items()} == {
        "{{name}}": 2, "{{author}}": 2, "<NAME>": 1, "<AUTHOR>": 1,
    }  # fmt: skip
    persona = load_persona(
        TEMPLATES / "assistant.yaml",
        {"name": "Tamsin", "name.zh": "塔姆辛", "author": "Pier Nine", "author.zh": "九号码头"},
    )
    fill = placeholders.of_persona(persona)
    report = import_file(CASES / "placeholders-alpaca.json", fill=fill)
    assert [row.messages[1]["content"] for row in report.rows] == [
        "Hello, I am Tamsin, built by Pier Nine.",
        "My name is Tamsin; Pier Nine trained me.",
        "我叫塔姆辛，来自九号码头。",
    ]
    assert not report.placeholders
    report = import_file(CASES / "placeholders-query-response.jsonl", fill=fill)
    assert [row.messages[1]["content"] for row in report.rows] == [
        "我是九号码头做的塔姆辛。",
        "Pier Nine made me, I'm Tamsin.",
    ]


@pytest.mark.parametrize(
    "mark",
    ["{{name}}", "{{ NAME }}", "{{model_name}}", "<NAME>", "[NAME]", "{name}", "{NAME}", "$NAME",
     "${name}", "__NAME__", "%NAME%", "[[name]]", "<<NAME>>", "{{名字}}", "【名字】", "<BOT NAME>"],
)  # fmt: skip
def test_spellings_of_placeholders(mark: str) -> None:
    assert placeholders.find(f"I am {mark}, hi") == [mark]
    row = {"instruction": "q", "output": f"I am {mark}."}
    report = read([row], fill=placeholders.of_values({"name": "Acme Inc."}))
    assert report.rows[0].messages[1]["content"] == "I am Acme Inc."


@pytest.mark.parametrize(
    "text",
    ["`{name}` in Python", "```\nprint(f'{name}')\n```", "a <b>bold</b> <BR> word", "[1] and [PDF]",
     "costs $NAME_NOT", "{a: 1}", "__init__", "50%", "{{", "x < NAME > y is prose"],
)  # fmt: skip
def test_what_is_no_placeholder(text: str) -> None:
    found = [m for m in placeholders.find(text) if m != "< NAME >"]
    assert found == []


@given(st.text(max_size=60), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
def test_filling_never_fails_and_leaves_nothing_behind(text: str, name: str) -> None:
    report = read(
        [{"instruction": "q", "output": "r {{name}} " + text.encode("utf-8", "replace").decode()}],
        fill=placeholders.of_values({"name": name}),
    )
    for row in report.rows:
        row.messages[1]["content"].encode()


# --- the command line ------------------------------------------------------------------------


def test_the_command_shows_before_it_saves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("Frage,Antwort,nr\nWer?,Ich bin {{name}}.,7\n")
    assert main(["dataset", "import", str(table), "--dry-run"]) == 0
    told = capsys.readouterr()
    assert "question from column 'Frage'" in told.err
    assert "key 'nr' is not read (1 times), e.g. '7'" in told.err
    assert "placeholder {{name}} in 1 rows" in told.err
    assert "assistant: Ich bin {{name}}." in told.out
    assert store.list_datasets() == []
    filled = ["--set", "name=Tamsin", "--columns", "question=Frage,answer=Antwort"]
    assert main(["dataset", "import", str(table), *filled]) == 0
    (row,) = store.rows("t")
    assert row.messages[1]["content"] == "Ich bin Tamsin."
    pack = ["--fill", "assistant", "--set", "name=Mira"]
    assert main(["dataset", "import", str(table), *pack, "--name", "u"]) == 0
    assert next(store.rows("u")).messages[1]["content"] == "Ich bin Mira."
    assert main(["dataset", "import", str(table), "--columns", "question"]) == 2
