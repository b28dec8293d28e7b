"""Scorecard tab: start an evaluation, look at the numbers of one, or at two side by side."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core import paths
from pages._ui.shell import current
from pages._ui.shell.language import t


def draw() -> None:
    """Jobs first, then the chosen scorecard."""
    from pages._ui.compare import scorecard_jobs
    from pages._ui.compare import scorecard_view as scorecard  # charts are only needed from here on

    scorecard_jobs.draw()
    cards = scorecard_jobs.cards(paths.runs_dir())
    if not cards:
        st.info(
            t("No scorecard yet. Score a merged model above, or with `python -m core score`."),
            icon=":material/fact_check:",
        )
        return
    by_run = {_run(card): card for card in reversed(cards)}
    usual = by_run.get(current.chosen("score", list(reversed(by_run))), cards[0])
    chosen = st.selectbox(
        t("Scorecard"),
        cards,
        index=cards.index(usual),
        format_func=_name,
        key="compare_scorecard",
        on_change=_chosen,
    )
    other = st.selectbox(
        t("Compare with"),
        [None, *(c for c in cards if c != chosen)],
        format_func=lambda f: t("nothing") if f is None else _name(f),
        key="compare_scorecard_with",
    )
    if other is None:
        scorecard.draw_scorecard(chosen)
    else:
        scorecard.draw_comparison(chosen, other, (_name(chosen), _name(other)))


def _chosen() -> None:
    card = st.session_state.get("compare_scorecard")
    if card is not None:
        current.choose(score=_run(card))


def _run(card: Path) -> str:
    return card.relative_to(paths.runs_dir()).parts[0]


def _name(card: Path) -> str:
    """The run as people call it, and where in it the scorecard is."""
    run, *where = card.relative_to(paths.runs_dir()).parent.parts
    return " / ".join([current.name_of(run), *(part for part in where if part != "export")])
