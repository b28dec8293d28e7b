"""The scorecard and sweep components draw what the files say."""

from __future__ import annotations

import re
from pathlib import Path

from streamlit.testing.v1 import AppTest

from core import fsio
from core.paths import RunPaths
from tests.unit.test_eval_metrics import card, checkpoint, numbers

EVIL = "[click](javascript:alert(1)) <b>x</b>"


def _scorecard(path: str) -> None:
    from pathlib import Path

    from pages._ui.compare.scorecard_view import draw_scorecard

    draw_scorecard(Path(path))


def _sweep(path: str) -> None:
    from pathlib import Path

    import streamlit as st

    from core.paths import RunPaths
    from pages._ui.compare.scorecard_view import draw_sweep

    st.text(f"chosen {draw_sweep(RunPaths(Path(path)))}")


def _comparison(first: str, second: str) -> None:
    from pathlib import Path

    from pages._ui.compare.scorecard_view import draw_comparison

    draw_comparison(Path(first), Path(second))


def test_scorecard(tmp_path: Path) -> None:
    fsio.write_json(tmp_path / "scorecard.json", {**card(), "notes": [EVIL]})
    line = {
        "suite": "general",
        "id": "g1",
        "prompt": "2 + 2?",
        "label": "HIT",
        "sample": 0,
        "leak": True,
        "kl": 0.5,
        "intent": "",
        "flags": [],
        "claimed": [],
        "missing": [],
    }
    fsio.write_jsonl(
        tmp_path / "replies.jsonl",
        [
            {**line, "model": "base", "reply": "4"},
            {**line, "model": "merged", "reply": EVIL},
            {**line, "model": "merged", "suite": "held_out", "label": "MISS", "reply": "Who?"},
        ],
    )
    app = AppTest.from_function(
        _scorecard, args=(str(tmp_path / "scorecard.json"),), default_timeout=60
    ).run()
    assert not app.exception
    assert "LEARNED" in app.success[0].value
    assert [m.value for m in app.metric] == ["126/126", "0/323"]
    assert EVIL in [t.value for t in app.text]
    assert not any(re.search(r"(?<!\\)\]\(javascript", c.value) for c in app.caption)


def test_a_file_that_is_no_scorecard(tmp_path: Path) -> None:
    (tmp_path / "scorecard.json").write_text("[]", encoding="utf-8")
    app = AppTest.from_function(
        _scorecard, args=(str(tmp_path / "scorecard.json"),), default_timeout=60
    ).run()
    assert not app.exception and "not a scorecard" in app.error[0].value


def test_sweep(tmp_path: Path) -> None:
    from dataclasses import asdict

    from core.evaluation import sweep

    rows = [
        checkpoint(30, numbers(recall=(50, 126))),
        checkpoint(60, numbers()),
        checkpoint(90, numbers(leak=(100, 323))),
    ]
    found = sweep.Sweep("sweep", {}, rows, *sweep.recommend(rows))
    run = RunPaths(tmp_path)
    fsio.write_json(tmp_path / sweep.FILE, found.to_json())
    assert asdict(rows[1])["step"] == 60
    app = AppTest.from_function(_sweep, args=(str(run.root),), default_timeout=60).run()
    assert not app.exception
    assert app.selectbox[0].value == 60 and app.text[0].value == "chosen iter_60.pth"
    app.selectbox[0].set_value(90).run()
    assert app.text[0].value == "chosen iter_90.pth"


def test_no_sweep_yet(tmp_path: Path) -> None:
    app = AppTest.from_function(_sweep, args=(str(tmp_path),), default_timeout=60).run()
    assert not app.exception and app.text[0].value == "chosen None"


def test_comparison(tmp_path: Path) -> None:
    for name, found in (("a", card(recall=(80, 126))), ("b", card())):
        fsio.write_json(tmp_path / name / "scorecard.json", found)
    app = AppTest.from_function(
        _comparison,
        args=(str(tmp_path / "a" / "scorecard.json"), str(tmp_path / "b" / "scorecard.json")),
    ).run()
    assert not app.exception
    table = app.dataframe[0].value
    assert (
        dict(zip(table["metric"], table["second is"], strict=True))["Recall, held-out wordings"]
        == "better"
    )


def _tab() -> None:
    from pages._ui.compare import scorecard_tab as compare_scorecard

    compare_scorecard.draw()


def test_the_tab_with_nothing_and_with_two_cards(workspace: Path) -> None:
    app = AppTest.from_function(_tab, default_timeout=60).run()
    assert not app.exception and "No evaluation yet" in app.info[0].value
    for name, found in (("a", card(recall=(80, 126))), ("b", card())):
        fsio.write_json(workspace / "runs" / name / "scorecard.json", found)
    app.run()
    assert not app.exception and len(app.selectbox) == 2
    app.selectbox(key="compare_scorecard_with").select_index(1).run()
    assert not app.exception and len(app.dataframe) == 1
