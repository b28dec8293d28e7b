"""Watching a run: progress, curves, samples, events, log, checkpoints, stop."""

from __future__ import annotations

import time
from collections.abc import Callable

import streamlit as st

from core.chat.render import literal
from core.jobs import api
from core.jobs.metrics import series_of
from core.jobs.spec import run_title
from core.jobs.state import ACTIVE, State, Status, Summary
from core.paths import RunPaths
from pages._ui.shell.common import errors_shown, run_label
from pages._ui.shell.language import time_left
from pages._ui.train import charts as train_charts
from pages._ui.train import details as train_details
from pages._ui.train.state import NEW, badge, paths_of, run_in_address, take_over, training_runs

#: Seconds between looks while a run is alive.
_EVERY = 2.0
#: After this many seconds of stopping, "force" is offered.
_FORCE_AFTER = 10.0


def draw() -> None:
    """The view: choose a run, then a part that renews itself while the run is alive."""
    runs = training_runs()
    chosen = run_in_address(runs)
    if chosen is None:
        st.info(
            "Nothing has been trained yet. Choose a dataset and press Start under "
            f"**{NEW}**; the run then appears here and goes on without this window.",
            icon=":material/model_training:",
        )
        return
    by_id = {s.id: s for s in runs}
    left, right = st.columns([3, 2])
    run_id = left.selectbox(
        "Run",
        list(by_id),
        index=list(by_id).index(chosen),
        format_func=lambda i: run_label(by_id[i]),
        key="train_run",
        on_change=lambda: st.query_params.update(run=st.session_state["train_run"]),
    )
    others = right.multiselect(
        "Compare with",
        [i for i in by_id if i != run_id],
        format_func=lambda i: run_title(by_id[i].name, i),
        placeholder="other runs",
        key="train_overlay",
    )
    run = paths_of(runs, run_id)
    live = by_id[run_id].state in (*ACTIVE, State.ORPHANED)
    panel: Callable[..., None] = st.fragment(_panel, run_every=_EVERY if live else None)
    panel(run, {o: paths_of(runs, o) for o in others}, by_id, live)


def _panel(
    run: RunPaths, others: dict[str, RunPaths], runs: dict[str, Summary], live: bool
) -> None:
    with errors_shown():
        now = api.status(run)
        if live and now.state not in (*ACTIVE, State.ORPHANED):
            st.rerun()  # the whole page once, so that the timer is dropped
        with st.container():  # what comes and goes in it must not make new tabs below
            _header(run, now)
            train_details.banners(run, now)
            series = {_name(runs, run): series_of(run)}
            series |= {_name(runs, other): series_of(other) for other in others.values()}
            train_details.numbers(series_of(run).last)
            with st.container(horizontal=True, horizontal_alignment="right"):
                log_scale = st.toggle("Logarithmic loss", key="train_log_scale")
            train_charts.loss_chart(series, log_scale=log_scale)
            train_charts.small_charts(series)
        train_details.tabs(run, now)


def _name(runs: dict[str, Summary], run: RunPaths) -> str:
    summary = runs.get(run.root.name)
    return f"{summary.name if summary else ''} {run.root.name[-4:]}".strip()


def _header(run: RunPaths, now: Status) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        badge(now.state, now.reason if now.final else None)
        st.caption(_progress_text(now))
        _stop_button(run, now)
        if now.kind == "train" and st.button(
            "Use its settings", icon=":material/content_copy:", key="train_again", type="tertiary"
        ):
            take_over(run)
            st.rerun()
    if now.state in ACTIVE:
        st.progress(min(1.0, now.done / now.total) if now.total else 0.0)


def _progress_text(now: Status) -> str:
    if now.stage == "queued":
        return f"waiting for the device, held by {literal(now.waiting_for)}"
    parts = [literal(now.stage)] if now.stage and now.state in ACTIVE else []
    if now.total:
        parts.append(f"{now.done:,} of {now.total:,}")
    if now.state in ACTIVE and now.eta_seconds is not None:
        parts.append(time_left(now.eta_seconds))
    if now.elapsed_seconds is not None:
        parts.append(
            f"{time_left(now.elapsed_seconds).removesuffix(' left')} so far"
            if now.state in ACTIVE
            else f"took {time_left(now.elapsed_seconds).removesuffix(' left')}"
        )
    return " · ".join(parts)


def _stop_button(run: RunPaths, now: Status) -> None:
    """Stop; force once stopping has taken long; for an orphan, end what is left of it."""
    if now.state is State.STOPPING:
        asked = run.stop.stat().st_mtime if run.stop.exists() else time.time()
        force = time.time() - asked > _FORCE_AFTER
        if st.button(
            "Force" if force else "Stopping",
            icon=":material/dangerous:",
            disabled=not force,
            key="train_force",
            help="End it at once, without the time to finish writing.",
        ):
            api.stop(run, force=True)
    elif now.state in ACTIVE:
        if st.button("Stop", icon=":material/stop:", key="train_stop"):
            api.stop(run)
            st.rerun(scope="fragment")
    elif now.state is State.ORPHANED and st.button(
        "End its processes", key="train_orphan", icon=":material/stop:"
    ):
        with st.spinner("Ending the processes of this run"):
            api.stop(run)
        st.rerun()
