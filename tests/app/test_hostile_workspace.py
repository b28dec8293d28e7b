"""A workspace full of broken and hostile things, and addresses that a stranger made up.

Every page draws, whatever lies there and whatever it is asked for.
"""

# ruff: noqa: E501  (broken files, one a line)

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core.paths import REPO

PAGES = ["1_Dataset", "2_Train", "3_Merge", "4_Compare"]
DEEP = "[" * 100_000
MARKDOWN = "![a](http://c.d/e) <img src=x onerror=alert(1)> :red[x] $x$"
ODD = [
    "x" * 300,
    "é" * 200,
    "../../etc/passwd",
    "a\0b",
    "con",
    ".",
    "",
    "latest",
    MARKDOWN,
    "%2e%2e",
]
KEYS = [
    "run",
    "chat",
    "dataset",
    "persona",
    "part",
    "view",
    "page",
    "lang",
    "project",
    "model",
    "tab",
]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def spoil(home: Path) -> None:
    """One of everything that can be wrong."""
    spec = {
        "schema": 1, "kind": "train", "name": MARKDOWN, "params": {"dataset": 3, "model": [1]},
        "seq": 1, "mark": "m", "created": 1.0,
    }  # fmt: skip
    specs: list[Any] = [
        spec, {**spec, "kind": "merge", "params": {"adapter": {"a": 1}}}, {**spec, "kind": "score"},
        {**spec, "kind": "dataset", "params": {"slots": [1], "persona": 4}}, {**spec, "kind": "x"},
        {**spec, "kind": "sweep", "params": None}, {**spec, "params": {"slots": {"name": [1]}}},
        {**spec, "seq": 10**400}, {**spec, "created": "x"}, {**spec, "name": "\ud800"}, DEEP, "", "[]",
        {**spec, "kind": "tune", "params": {"runs": 1}}, {**spec, "kind": "export", "parent": "../x"},
    ]  # fmt: skip
    over = {"schema": 1, "state": "SUCCEEDED", "reason": "completed", "elapsed": 1.0}
    for index, content in enumerate(specs):
        run = home / "runs" / f"20260101-0000{index:02}-odd"
        write(run / "spec.json", content)
        if index % 2:
            write(run / "exit.json", over)
        for name in ("result.json", "sweep.json", "scorecard.json", "training.json", "error.json"):
            write(
                run / name,
                [DEEP, "{}", "[]", {"schema": 1, "models": 3, "folder": [1]}, "null"][index % 5],
            )
        write(run / "metrics.jsonl", f'{{"type":"metric","step":1,"loss":"x"}}\n{DEEP}\n\x00\n')
        write(
            run / "events.jsonl",
            json.dumps({"event": "sample", "prompt": {"a": 1}, "step": []}) + "\n",
        )
        write(run / "log.txt", f"\x1b]52;c;x\x07{MARKDOWN}\r\r")
        write(
            run / "adapter" / "iter_2" / "adapter_config.json", ["[]", DEEP, "{", "{}"][index % 4]
        )
        write(
            run / "export" / "merged" / "MANIFEST.json",
            ["[]", DEEP, '{"schema":1}', "{}"][index % 4],
        )
        write(run / "export" / "merged" / "config.json", ["[]", "{}", DEEP, "x"][index % 4])
        (run / "export" / "merged" / "README.md").write_bytes(b"---\nlicense: \xff\n")
    for index, content in enumerate(
        [
            "[]",
            DEEP,
            '{"schema":1,"rows":"x"}',
            '{"schema":1,"persona":3,"slots":[1],"kinds":{"a":1}}',
        ]
    ):
        folder = home / "datasets" / f"odd-{index}"
        write(folder / "dataset.json", content)
        write(folder / "train.jsonl", [DEEP, "\x00", '{"id":1}', "{}"][index])
        write(folder / "persona.yaml", ["[", "a: &a [*a]", "x", DEEP][index])
        write(folder / "probes.jsonl", DEEP)
        write(home / "drafts" / f"odd-{index}.jsonl", '{"do":"edit","rows":3}\n')
    write(home / "drafts" / "persona-form.json", '{"schema": 1, "values": [1]}')
    for index, content in enumerate([DEEP, "x", '{"type":"chat","columns":3}', '{"type":"turn"}']):
        write(home / "chats" / f"odd-{index}.jsonl", content + "\n")
    for index, content in enumerate(
        ["a: &a [*a, *a]", "[" * 500, "schema: persona/1\nextends: x", "\x00"]
    ):
        write(home / "personas" / f"odd-{index}.yaml", content)
        write(home / "packs" / f"odd-{index}.yaml", content)
    for index, content in enumerate(
        ["[]", DEEP, '{"architectures":3}', '{"model_type":[1],"hidden_size":"x"}']
    ):
        write(home / "models" / f"odd-{index}" / "config.json", content)
        write(home / "models" / f"odd-{index}" / "tokenizer_config.json", content)
    for index, name in enumerate(
        [
            *("spec.json", "exit.json", "supervisor.json", "result.json", "sweep.json"),
            *("scorecard.json", "metrics.jsonl", "events.jsonl", "log.txt", "note.txt"),
            *("config.py", "training.json"),
        ]
    ):  # what would be waited for, for ever
        run = home / "runs" / f"20260101-0001{index:02}-pipe"
        write(run / "spec.json", spec)
        write(run / "exit.json", over)
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)
    for place in ("runs", "datasets", "chats", "models"):  # names that no page can hold
        os.makedirs(os.fsencode(home / place) + b"/\xff\xfe/export/merged")
        for name in (b"spec.json", b"dataset.json", b"config.json", b"export/merged/config.json"):
            Path(os.fsdecode(os.fsencode(home / place) + b"/\xff\xfe/" + name)).write_text("{}")
    os.mkfifo(home / "chats" / "odd-pipe.jsonl")
    (home / "chats" / "odd-folder.jsonl").mkdir()
    write(
        home / "runs" / "20260101-000201-card" / "export" / "scorecard.json",
        {"schema": 1, "models": {"base": {"recall": {"hits": 1}}}, "subject": "base"},
    )
    (home / "packs" / "odd-bytes.yaml").write_bytes(b"schema: persona/1\nextends: \xff\xfe")
    for place in ("runs", "datasets", "chats", "models", "personas"):
        (home / place).mkdir(exist_ok=True)
        (home / place / "dangling").symlink_to("/nowhere")
        (home / place / "loop").symlink_to(home / place / "loop")
        os.mkfifo(home / place / "pipe")
        write(home / place / MARKDOWN.replace("/", "_"), "x")


#: Elements whose text or label Streamlit reads as Markdown.
READ = (
    "markdown", "caption", "title", "header", "subheader", "error", "warning", "info", "success",
    "button", "selectbox", "multiselect", "checkbox", "toggle", "text_input", "text_area", "radio",
    "number_input", "slider", "expander", "tabs", "metric", "toast", "button_group",
)  # fmt: skip


def meant(app: AppTest) -> list[str]:
    """What the browser would read as an image or a directive of the stranger's."""
    texts = []
    for kind in READ:
        for element in app.get(kind):
            proto = getattr(element, "proto", None)
            texts += [str(getattr(element, name, "") or "") for name in ("label", "help")]
            texts += [str(getattr(proto, name, "") or "") for name in ("label", "body", "help")]
    as_code = [re.sub(r"(`+).*?\1", "", text) for text in texts]
    return [t for t in as_code if re.search(r"(?<!\\)!\[a\]\(http|(?<![\\\u2060]):red\[", t)]


def test_what_is_raw_is_seen() -> None:
    """Otherwise the test below would prove nothing."""
    for raw in ("st.markdown(x)", "st.caption(x)", "st.button(x)", "st.expander(x)", "st.error(x)"):
        app = AppTest.from_string(f"import streamlit as st\nx = {MARKDOWN!r}\n{raw}").run()
        assert meant(app), raw


@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws(page: str, workspace_with_model: Path) -> None:
    spoil(workspace_with_model)
    app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=240)
    app.run()
    assert not app.exception, app.exception
    assert meant(app) == []
    app.switch_page(f"pages/{page}.py").run()
    assert not app.exception, app.exception
    assert meant(app) == []
    title = app.title[0].value
    for value in [*ODD, "20260101-000000-odd", "odd-0", "odd-3"]:
        for key in KEYS:
            app.query_params[key] = value
        app.run()
        assert not app.exception, (value, app.exception)
        assert meant(app) == []
        assert app.title[0].value == title
