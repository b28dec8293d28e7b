"""Watching a run: progress, curves, samples, events, log, checkpoints, stop and resume."""

from __future__ import annotations

import time
from collections.abc import Callable

import streamlit as st

from core.chat.render import literal
from core.jobs import api
from core.jobs.state import ACTIVE, State, Status, Summary
from core.paths import RunPaths
from core.training import figures, lineage
from pages._ui.shell import current, words
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import duration, number, t, time_left
from pages._ui.train import charts as train_charts
from pages._ui.train import checkpoints as train_checkpoints
from pages._ui.train import details as train_details
from pages._ui.train.state import badge, paths_of, run_label, take_over, training_runs

#: Seconds between looks while a run is alive.
_EVERY = 2.0
#: After this many seconds of stopping, "force" is offered: a step and its checkpoint take as long.
_FORCE_AFTER = 10.0


def draw() -> None:
    """The view: choose a run, then a part that renews itself while the run is alive."""
    runs = training_runs()
    if not runs:
        st.info(
            t(
                "Nothing has been trained yet. Choose a dataset and press Start under **New run**; "
                "the run then appears here and goes on without this window."
            ),
            icon=":material/model_training:",
        )
        return
    by_id = {s.id: s for s in runs}
    st.session_state["train_run"] = current.chosen("run", list(by_id))
    left, right = st.columns([3, 2])
    run_id = left.selectbox(
        t("Run"),
        list(by_id),
        format_func=lambda i: run_label(by_id[i]),
        key="train_run",
        on_change=lambda: current.choose(run=st.session_state["train_run"]),
    )
    others = right.multiselect(
        t("Compare with"),
        [i for i in by_id if i != run_id],
        format_func=current.name_of,
        placeholder=t("other runs"),
        key="train_overlay",
    )
    run = paths_of(runs, run_id)
    live = by_id[run_id].state in (*ACTIVE, State.ORPHANED)
    panel: Callable[..., None] = st.fragment(_panel, run_every=_EVERY if live else None)
    panel(run, [paths_of(runs, o) for o in others], by_id[run_id], live)


def _panel(run: RunPaths, others: list[RunPaths], summary: Summary, live: bool) -> None:
    with errors_shown():
        now = api.status(run)
        if live and now.state not in (*ACTIVE, State.ORPHANED):
            st.rerun()  # the whole page once, so that the timer is dropped
        with st.container():  # what comes and goes in it must not make new tabs below
            _header(run, now)
            train_details.banners(run, now)
            _curves(run, others)
        train_details.tabs(run, now)


def _curves(run: RunPaths, others: list[RunPaths]) -> None:
    shown = {current.name_of(one.root.name): one for one in (run, *others)}
    series = {name: lineage.series(one) for name, one in shown.items()}
    looks = {name: figures.of_run(one) for name, one in shown.items()}
    train_details.numbers(lineage.series(run).last)
    with st.container(horizontal=True, horizontal_alignment="right"):
        log_scale = st.toggle(t("Logarithmic loss"), key="train_log_scale")
    if any(looks.values()):
        left, right = st.columns([3, 2])
        with right:
            train_charts.figure_charts(looks)
    else:
        left = st.container()
    with left:
        train_charts.loss_chart(series, log_scale=log_scale)
        if len(shown) > 1:
            st.caption(t("Thin: the loss of each step. Bold: its running mean."))
        train_charts.small_charts(series)


def _header(run: RunPaths, now: Status) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        badge(now.state, now.reason if now.final else None)
        st.caption(_progress_text(now))
        _stop_button(run, now)
        if now.kind == "train":
            train_checkpoints.resume(run, now)
            if st.button(
                t("Use its settings"),
                icon=":material/content_copy:",
                key="train_again",
                type="tertiary",
            ):
                take_over(run)
                st.rerun()
    if now.state in ACTIVE:
        st.progress(min(1.0, now.done / now.total) if now.total else 0.0)


def _progress_text(now: Status) -> str:
    if now.stage == "queued":
        return t(
            "waiting for the device, held by {what}", what=literal(words.holding(now.waiting_for))
        )
    parts = []
    if now.state is State.STOPPING:
        parts.append(t("finishing the step and writing a checkpoint"))
    elif now.stage and now.state in ACTIVE:
        parts.append(literal(words.doing(now.stage)))
    if now.total:
        parts.append(t("{done} of {total}", done=number(now.done), total=number(now.total)))
    if now.state in ACTIVE and now.eta_seconds is not None:
        parts.append(time_left(now.eta_seconds))
    if now.elapsed_seconds is not None:
        spent = duration(now.elapsed_seconds)
        parts.append(t("{time} so far" if now.state in ACTIVE else "took {time}", time=spent))
    return " · ".join(parts)


def _stop_button(run: RunPaths, now: Status) -> None:
    """Stop; force once stopping has taken long; for an orphan, end what is left of it."""
    if now.state is State.STOPPING:
        asked = run.stop.stat().st_mtime if run.stop.exists() else time.time()
        force = time.time() - asked > _FORCE_AFTER
        if st.button(
            t("Force" if force else "Stopping"),
            icon=":material/dangerous:",
            disabled=not force,
            key="train_force",
            help=t("End it at once, without the checkpoint of this step."),
        ):
            api.stop(run, force=True)
    elif now.state in ACTIVE:
        if st.button(
            t("Stop"),
            icon=":material/stop:",
            key="train_stop",
            help=t("The step is finished and a checkpoint written first: nothing is lost."),
        ):
            api.stop(run)
            st.rerun(scope="fragment")
    elif now.state is State.ORPHANED and st.button(
        t("End its processes"), key="train_orphan", icon=":material/stop:"
    ):
        with st.spinner(t("Ending the processes of this run")):
            api.stop(run)
        st.rerun()
