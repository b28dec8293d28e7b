"""Every run so far: filter, open, delete."""

from __future__ import annotations

import datetime

import streamlit as st

from core.jobs import api
from core.jobs.state import ACTIVE, State, Summary
from core.paths import RunPaths
from pages._ui.shell import words
from pages._ui.shell.common import errors_shown
from pages._ui.train.state import NEW, WATCH, go_to, training_runs


def draw() -> None:
    """The table; what is selected can be opened or deleted."""
    runs = training_runs()
    if not runs:
        st.info(f"No runs yet. Start one under **{NEW}**.", icon=":material/history:")
        return
    with st.container(horizontal=True):
        text = st.text_input("Filter", placeholder="name or id", key="train_filter", width=320)
        states = st.multiselect(
            "States",
            sorted({s.state for s in runs}),
            placeholder="all",
            key="train_filter_states",
            width=320,
        )
    shown = [
        s
        for s in runs
        if (not states or s.state in states) and text.lower() in f"{s.name} {s.id}".lower()
    ]
    event = st.dataframe(
        list(map(_row, shown)),
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        key="train_history",
        column_config={"created": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm")},
    )
    picked = [shown[i] for i in event.selection.rows if i < len(shown)]
    st.caption(
        f"{len(shown)} of {words.count(len(runs), 'run')}. Select rows to open or delete them."
    )
    _actions(picked)


def _row(summary: Summary) -> dict[str, object]:
    return {
        "name": summary.name,
        "state": words.ending(summary.state, summary.reason),
        "created": datetime.datetime.fromtimestamp(summary.created),
        "minutes": None
        if summary.elapsed_seconds is None
        else round(summary.elapsed_seconds / 60, 1),
        "from": summary.parent or "",
        "id": summary.id,
    }


def _actions(picked: list[Summary]) -> None:
    dead = [s for s in picked if s.state not in (*ACTIVE, State.ORPHANED)]
    with st.container(horizontal=True):
        if st.button(
            "Open", icon=":material/open_in_full:", disabled=len(picked) != 1, key="train_open"
        ):
            go_to(WATCH, picked[0].id)
            st.rerun()
        if st.button(
            f"Delete {len(dead) or ''}".strip(),
            icon=":material/delete:",
            disabled=not dead,
            key="train_delete",
        ):
            _confirm(dead)


@st.dialog("Delete runs")
def _confirm(runs: list[Summary]) -> None:
    st.write(
        f"{words.count(len(runs), 'run')} and all checkpoints and logs in it will be removed. "
        "Merged models and datasets stay."
    )
    if st.button("Delete", type="primary", key="train_delete_sure"):
        with errors_shown():
            for summary in runs:
                api.delete(RunPaths(summary.root))
            st.rerun()
