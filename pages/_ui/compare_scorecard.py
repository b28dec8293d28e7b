"""Scorecard tab: the numbers of an evaluation that was run."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core import paths


def draw() -> None:
    """Choose an evaluated run and show its scorecard."""
    cards = _cards()
    if not cards:
        st.info(
            "No evaluation yet. Run one from the Train or Merge page, or with "
            "`python -m core evaluate`; its scorecard then appears here.",
            icon=":material/fact_check:",
        )
        return
    chosen = st.selectbox(
        "Evaluation", cards, format_func=lambda f: str(f.parent.name), key="compare_scorecard"
    )
    from pages._ui.scorecard import draw_scorecard  # charts are only needed from here on

    draw_scorecard(chosen)


def _cards() -> list[Path]:
    """Scorecards of all runs, newest first."""
    root = paths.runs_dir()
    found = [
        f for pattern in ("*/scorecard.json", "*/*/scorecard.json") for f in root.glob(pattern)
    ]
    return sorted(found, key=lambda f: f.stat().st_mtime, reverse=True)
