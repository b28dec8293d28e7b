"""Scorecard tab: start an evaluation, look at the numbers of one, or at two side by side."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core import paths
from core.chat.columns import title_of


def draw() -> None:
    """Jobs first, then the chosen scorecard."""
    from pages._ui.compare import scorecard_jobs
    from pages._ui.compare import scorecard_view as scorecard  # charts are only needed from here on

    scorecard_jobs.draw()
    cards = scorecard_jobs.cards(paths.runs_dir())
    if not cards:
        st.info(
            "No evaluation yet. Score a merged model above, or with `python -m core score`.",
            icon=":material/fact_check:",
        )
        return
    chosen = st.selectbox("Evaluation", cards, format_func=_name, key="compare_scorecard")
    other = st.selectbox(
        "Compare with",
        [None, *(c for c in cards if c != chosen)],
        format_func=lambda f: "nothing" if f is None else _name(f),
        key="compare_scorecard_with",
    )
    if other is None:
        scorecard.draw_scorecard(chosen)
    else:
        scorecard.draw_comparison(chosen, other)


def _name(card: Path) -> str:
    """The run's name and where in it the scorecard is."""
    root, *where = card.relative_to(paths.runs_dir()).parent.parts
    title = title_of(paths.runs_dir() / root)
    return " / ".join([title, *(part for part in where if part != "export")])
