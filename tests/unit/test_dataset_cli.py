"""``python -m core dataset``: the commands that need no model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.commands.main import main
from core.conversation import Conversation
from core.data import store
from core.data.formats import FORMATS

ROWS = [
    Conversation(
        f"r{i}",
        [{"role": "user", "content": f"q {i}\n你好"}, {"role": "assistant", "content": f"a {i}"}]
        * (1 + i % 3),
        "own",
        locale="en",
    )
    for i in range(9)
]


@pytest.mark.parametrize("fmt", FORMATS)
def test_export_and_import_give_the_rows_back(fmt: str, tmp_path: Path) -> None:
    store.save("one", ROWS)
    out = tmp_path / "out.jsonl"
    assert main(["dataset", "export", "one", str(out), "--format", fmt]) == 0
    assert main(["dataset", "export", "one", str(out)]) == 2, "a file is never written over"
    assert main(["dataset", "import", str(out), "--name", "two"]) == 0
    assert list(store.rows("two")) == ROWS


def test_import_reports_bad_rows_and_strict_saves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "My talks.jsonl"
    good = json.dumps(ROWS[0].to_row())
    file.write_text(f'{good}\n{{"messages": []}}\n{good}\n')
    assert main(["dataset", "import", str(file), "--strict"]) == 2
    assert store.list_datasets() == []
    assert main(["dataset", "import", str(file)]) == 0
    told = capsys.readouterr()
    assert "line 2, messages: there are no turns" in told.err
    assert "2 rows saved in dataset my-talks" in told.out


def test_import_adds_to_a_dataset_as_a_new_version(tmp_path: Path) -> None:
    store.save("one", ROWS)
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps(ROWS[0].to_row()) + "\n")
    assert main(["dataset", "import", str(file), "--add-to", "one"]) == 0
    assert len(list(store.rows("one-2"))) == len(ROWS) + 1
    assert store.manifest("one-2")["parent"] == "one"
    assert len(list(store.rows("one"))) == len(ROWS)


def test_list_lint_and_delete(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dataset", "list"]) == 0
    assert "build one with" in capsys.readouterr().out
    store.save("one", ROWS)
    assert main(["dataset", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 9
    assert main(["dataset", "lint", "one"]) == 0
    assert main(["dataset", "lint", str(store.dataset("one").root)]) == 0
    bad = Conversation(
        "x", [{"role": "user", "content": "q"}, {"role": "assistant", "content": " "}]
    )
    store.save("bad", [bad])
    assert main(["dataset", "lint", "bad"]) == 1
    assert main(["dataset", "delete", "one"]) == 0
    assert main(["dataset", "delete", "one"]) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["build", "no-such-pack"],
        ["build", "assistant", "--set", "name"],
        ["build", "assistant", "--set", "nope=1"],
        ["build", "assistant", "--multi-turn", "7"],
        ["simulate", "x", "--locale", "fr"],
        ["simulate", "../x"],
        ["export", "nope", "x.jsonl"],
        ["import", "nope.jsonl"],
        ["report", "nope"],
    ],
)
def test_wrong_input_ends_with_2_and_a_way_out(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dataset", *arguments]) == 2
    assert "fix:" in capsys.readouterr().err
