"""Start a scorecard or a sweep, and watch it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

from core.chat.render import literal
from core.errors import UserError
from core.evaluation import sweep
from core.evaluation.plan import Size
from core.evaluation.score_job import ScoreSpec
from core.evaluation.sweep_job import SweepSpec
from core.jobs import api
from core.jobs.spec import read_spec
from core.jobs.state import ACTIVE, State, Status, Summary
from core.paths import RunPaths
from core.records import JobSpec
from pages._ui.compare.scorecard_view import draw_sweep
from pages._ui.shell.common import errors_shown, run_label, show_error
from pages._ui.shell.language import time_left

#: Seconds between looks while a job is alive.
_EVERY = 2.0
_SIZES: dict[Size, str] = {
    "quick": "quick: held-out wordings, general and near-miss prompts; a few minutes",
    "full": "full: every suite, attacks, long talks, knowledge; up to 20 minutes on a laptop",
}


def draw() -> None:
    """Two forms (a merged model, a run's checkpoints) and the jobs that are alive."""
    runs = api.list_runs()
    merged = [s for s in runs if s.kind == "merge" and s.state is State.SUCCEEDED]
    trained = [s for s in runs if s.kind == "train" and s.state is State.SUCCEEDED]
    left, right = st.columns(2)
    with left.container(border=True):
        _score_form(merged)
    with right.container(border=True):
        _sweep_form(trained)
    jobs = [s for s in runs if s.kind in ("evaluate", "sweep")][:3]
    for job in jobs:
        live = job.state in ACTIVE
        panel: Callable[..., None] = st.fragment(_panel, run_every=_EVERY if live else None)
        panel(RunPaths(job.root), live)


def _score_form(merged: list[Summary]) -> None:
    st.markdown("**Score a merged model**")
    if not merged:
        st.caption("Merge a checkpoint first (page Merge).")
        return
    by_id = {s.id: s for s in merged}
    chosen = st.selectbox(
        "Merged model", list(by_id), format_func=lambda i: run_label(by_id[i]), key="score_model"
    )
    size = st.radio("Size", list(_SIZES), format_func=_SIZES.__getitem__, key="score_size")
    if st.button("Score it", icon=":material/fact_check:", key="score_start"):
        with errors_shown():
            run = RunPaths(by_id[chosen].root)
            _launch(score_spec(run, size), by_id[chosen])


def score_spec(run: RunPaths, size: Size) -> ScoreSpec:
    """What the evaluate job is asked about a merge run.

    Raises:
        UserError: the merge run does not know its dataset.
    """
    params = read_spec(run).params
    result = api.status(run).result or {}
    if not params.get("dataset"):
        raise UserError(
            "this merge does not say which dataset it was trained on",
            fix="score it with `python -m core score --dataset DIR`",
        )
    return ScoreSpec(
        base=params["base"], merged=result["merged"], dataset=params["dataset"], size=size
    )


def _sweep_form(trained: list[Summary]) -> None:
    st.markdown("**Find the best checkpoint of a run**")
    if not trained:
        st.caption("Train first (page Train).")
        return
    by_id = {s.id: s for s in trained}
    chosen = st.selectbox(
        "Training run", list(by_id), format_func=lambda i: run_label(by_id[i]), key="sweep_run"
    )
    stop = st.toggle("Stop at the first checkpoint that passes every gate", key="sweep_stop")
    if st.button("Sweep", icon=":material/stacked_line_chart:", key="sweep_start"):
        with errors_shown():
            root = by_id[chosen].root
            params = read_spec(RunPaths(root)).params
            spec = SweepSpec(
                run=str(root),
                base=params["model"],
                dataset=params["dataset"],
                stop_when_passed=stop,
            )
            _launch(spec, by_id[chosen])
    if (by_id[chosen].root / sweep.FILE).is_file():
        draw_sweep(RunPaths(by_id[chosen].root))


def _launch(spec: JobSpec, parent: Summary) -> None:
    api.launch(spec, name=f"{spec.job} {parent.name}"[:48], parent=parent.id)
    st.rerun()


def _panel(run: RunPaths, live: bool) -> None:
    with errors_shown():
        now = api.status(run)
        if live and now.state not in ACTIVE:
            st.rerun()  # the whole page once, so that the timer is dropped
        left, right = st.columns([5, 1])
        with left:
            _progress(now, live)
        if live and right.button("Stop", icon=":material/stop:", key=f"stop-{now.id}"):
            api.stop(run)


def _progress(now: Status, live: bool) -> None:
    if live:
        share = now.done / now.total if now.total else 0.0
        st.progress(
            min(share, 1.0),
            f"{literal(now.name)}: {literal(now.stage)} {now.done}/{now.total or '?'} "
            f"{time_left(now.eta_seconds)}",
        )
    elif now.error is not None:
        st.caption(literal(now.name))
        show_error(now.error)
    else:
        found = (now.result or {}).get("verdict") or (now.result or {}).get("reason") or ""
        st.caption(f"{literal(now.name)}: {literal(now.state.value.lower())}")
        if found:
            st.text(found)


def cards(root: Path) -> list[Path]:
    """Scorecards of all runs, newest first."""
    found = [
        f for pattern in ("*/scorecard.json", "*/*/scorecard.json") for f in root.glob(pattern)
    ]
    return sorted(found, key=lambda f: f.stat().st_mtime, reverse=True)
