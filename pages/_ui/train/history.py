"""Every run so far, as a table to sort and to search: open, note, delete."""

from __future__ import annotations

import datetime
from typing import Any

import streamlit as st

from core.evaluation import choice
from core.jobs import api
from core.jobs.state import ACTIVE, State, Summary
from core.paths import RunPaths
from core.training import history
from pages._ui.shell import current, words
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import N_, t, tn
from pages._ui.train.state import WATCH, training_runs


def draw() -> None:
    """The table; what is selected can be opened, noted or deleted."""
    runs = training_runs()
    if not runs:
        st.info(t("No runs yet. Start one under **New run**."), icon=":material/history:")
        return
    with st.container(horizontal=True):
        text = st.text_input(
            t("Filter"), placeholder=t("name, dataset or note"), key="train_filter", width=320
        )
        states = st.multiselect(
            t("States"),
            sorted({s.state for s in runs}),
            format_func=lambda state: words.ending(State(state)),
            placeholder=t("all"),
            key="train_filter_states",
            width=320,
        )
    rows = {s.id: _row(s, history.line(s)) for s in runs if not states or s.state in states}
    wanted = text.casefold()
    shown = [
        s
        for s in runs
        if s.id in rows and wanted in f"{s.id} {' '.join(map(str, rows[s.id].values()))}".casefold()
    ]
    event = st.dataframe(
        [{t(key): value for key, value in rows[s.id].items()} for s in shown],
        hide_index=True,
        on_select="rerun",
        selection_mode="multi-row",
        key="train_history",
        column_config=_columns(),
    )
    picked = [shown[i] for i in event.selection.rows if i < len(shown)]
    st.caption(
        t("{shown} of {all}. A click on a heading sorts; select rows to open, note or delete them.",
          shown=len(shown), all=tn("{n} run", "{n} runs", len(runs)))
    )  # fmt: skip
    _actions(picked)


#: The columns, in order; each text is a heading.
_HEADINGS = (
    N_("run"),
    N_("state"),
    N_("verdict"),
    N_("loss"),
    N_("steps"),
    N_("learning rate"),
    N_("dataset"),
    N_("note"),
    N_("started"),
    N_("minutes"),
    N_("size (MB)"),
)


def _row(summary: Summary, line: history.Line) -> dict[str, Any]:
    done = f"{line.step} / {line.steps}" if line.step and line.step != line.steps else None
    minutes = summary.elapsed_seconds
    values = (
        current.name_of(summary.id),
        words.ending(summary.state, summary.reason),
        words.verdict(choice.verdict(RunPaths(summary.root))),
        line.loss,
        done or str(line.steps or ""),
        line.lr,
        line.dataset,
        line.note.strip(),
        datetime.datetime.fromtimestamp(summary.created),
        None if minutes is None else round(minutes / 60, 1),
        round(line.bytes / 1e6, 1) if line.bytes else None,
    )
    return dict(zip(_HEADINGS, values, strict=True))


def _columns() -> dict[str, Any]:
    config = st.column_config
    return {
        t("started"): config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        t("loss"): config.NumberColumn(format="%.4f"),
        t("learning rate"): config.NumberColumn(format="%.2e"),
    }


def _actions(picked: list[Summary]) -> None:
    dead = [s for s in picked if s.state not in (*ACTIVE, State.ORPHANED)]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        if st.button(
            t("Open"), icon=":material/open_in_full:", disabled=len(picked) != 1, key="train_open"
        ):
            current.choose(view=WATCH, run=picked[0].id)
            st.rerun()
        if st.button(
            tn("Delete {n} run", "Delete {n} runs", len(dead)) if dead else t("Delete"),
            icon=":material/delete:",
            disabled=not dead,
            key="train_delete",
        ):
            _confirm(dead)
        if len(picked) == 1:
            _note(picked[0])


def _note(summary: Summary) -> None:
    run = RunPaths(summary.root)
    key = f"train_note_{summary.id}"
    st.session_state.setdefault(key, history.read_note(run).strip())

    def keep() -> None:
        with errors_shown():
            history.write_note(run, st.session_state[key])

    st.text_input(t("Note"), key=key, max_chars=history.NOTE, on_change=keep, width=420)


@st.dialog(" ")
def _confirm(runs: list[Summary]) -> None:
    st.write(
        t(
            "{runs} and all checkpoints and logs in it will be removed. Merged models and "
            "datasets stay.",
            runs=tn("{n} run", "{n} runs", len(runs)),
        )
    )
    if st.button(t("Delete"), type="primary", key="train_delete_sure"):
        with errors_shown():
            for summary in runs:
                api.delete(RunPaths(summary.root))
            st.rerun()
