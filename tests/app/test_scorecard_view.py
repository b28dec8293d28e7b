"""The scorecard and sweep components draw what the files say."""

from __future__ import annotations

import re
from pathlib import Path

from streamlit.testing.v1 import AppTest

from core import fsio
from core.paths import RunPaths
from core.text.intervals import Rate
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

    draw_sweep(RunPaths(Path(path)))
    st.text("drawn")


def _comparison(first: str, second: str) -> None:
    from pathlib import Path

    from pages._ui.compare.scorecard_view import draw_comparison

    draw_comparison(Path(first), Path(second), ("Luna, scorecard 1", "Luna, scorecard 2"))


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
    assert "Learned" in app.success[0].value
    assert [m.value for m in app.metric] == ["126/126", "0/323"]
    app.query_params["part"] = "changed"
    app.run()
    assert EVIL in [t.value for t in app.text]
    assert not any(re.search(r"(?<!\\)\]\(javascript", c.value) for c in app.caption)


def test_every_failed_gate_is_named_and_nothing_is_learned_beside_one(tmp_path: Path) -> None:
    """Also on a card from before the verdict knew: two gates fail, LEARNED stands in the file."""
    bad = card(recall=(120, 159), near_miss_leak=Rate(9, 70).to_json())
    for gate in bad["explanation"]["gates"]:
        if gate["name"] == "leak":
            gate.update(outcome="warn", shown="1/159 (0.1%-3.5%)", limit="≤ 0")
    fsio.write_json(tmp_path / "scorecard.json", {**bad, "verdict": "LEARNED"})
    app = AppTest.from_function(
        _scorecard, args=(str(tmp_path / "scorecard.json"),), default_timeout=60
    ).run()
    assert not app.exception and not app.success
    said = app.warning[0].value
    assert "Some gates fail" in said and "Learned" not in said
    assert "Persona in look-alike questions: 9/70" in said
    assert "Knows its persona, unseen wordings: 120/159" in said
    assert "just miss their limit" in said and "1/159 (0.1%-3.5%), limit 0" in said


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
    assert "Recommended: step 60" in app.info[0].value
    assert [b.label for b in app.button] == ["Merge it"]


def test_no_sweep_yet(tmp_path: Path) -> None:
    app = AppTest.from_function(_sweep, args=(str(tmp_path),), default_timeout=60).run()
    assert not app.exception and app.text[0].value == "drawn" and not app.info


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
        dict(zip(table["What"], table["The second is"], strict=True))[
            "Knows its persona, unseen wordings"
        ]
        == "better"
    )


def _tab() -> None:
    from pages._ui.compare import scorecard_tab as compare_scorecard

    compare_scorecard.draw()


def test_the_tab_with_nothing_and_with_two_cards(workspace: Path) -> None:
    app = AppTest.from_function(_tab, default_timeout=60).run()
    assert not app.exception and "No scorecard yet" in app.info[0].value
    for name, found in (("a", card(recall=(80, 126))), ("b", card())):
        fsio.write_json(workspace / "runs" / name / "scorecard.json", found)
    app.run()
    assert not app.exception and len(app.selectbox) == 2
    app.selectbox(key="compare_scorecard_with").select_index(1).run()
    assert not app.exception and len(app.dataframe) == 1
