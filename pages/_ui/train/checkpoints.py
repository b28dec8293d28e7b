"""The checkpoints of a run: their figures, the recommended one, and going on from one of them."""

from __future__ import annotations

import streamlit as st

from core import fsio
from core.evaluation import choice
from core.jobs.state import ACTIVE, Reason, State, Status
from core.paths import RunPaths
from core.training import figures, lifecycle
from pages._ui.shell import current
from pages._ui.shell.common import errors_shown, model_libraries
from pages._ui.shell.language import from_core, number, t
from pages._ui.train.state import WATCH


def draw(run: RunPaths) -> None:
    """List them."""
    with errors_shown():
        found = lifecycle.checkpoints_of(run)
        if not found:
            st.caption(t("None yet."))
            return
        looks = {one.step: one for one in figures.of_run(run)}
        best = choice.recommended(run)
        rows = []
        for one in found:
            look = looks.get(one.step)
            state = t("Complete") if one.whole else from_core(one.problem)
            marked = best is not None and best.by != "last" and best.step == one.step
            rows.append(
                {
                    t("step"): one.step,
                    t("state"): f"{state} · {t('recommended')}" if marked else state,
                    t("identity margin"): look and look.margin,
                    t("difference from the base"): look and look.kl,
                    t("perplexity, times the base's"): look and look.ppl_ratio,
                    t("size"): fsio.human_bytes(one.size),
                    t("file"): one.path.name,
                }
            )
        known = [key for key in rows[0] if any(row[key] is not None for row in rows)]
        st.dataframe([{key: row[key] for key in known} for row in rows], hide_index=True)


def resume(run: RunPaths, now: Status) -> None:
    """Once the run is over: go on from its newest checkpoint, or from an earlier one."""
    if now.state in (*ACTIVE, State.ORPHANED, State.CREATED):
        return
    with errors_shown():
        steps = lifecycle.training_spec(run).steps
        usable = [c.step for c in lifecycle.checkpoints_of(run) if c.whole and c.step < steps]
        if not usable:
            return
        newest = usable[-1]
        if not _beyond_hope(now) and st.button(
            t("Resume from step {step}", step=number(newest)),
            icon=":material/resume:",
            key="train_resume",
            help=t("Goes on in the same curve, to the very weights that this run would have had."),
        ):
            _go_on(run, newest)
        with st.popover(t("Resume from checkpoint"), icon=":material/history:", type="tertiary"):
            step = st.selectbox(
                t("Optimizer step"), usable, index=len(usable) - 1, key="train_resume_step"
            )
            if st.button(t("Resume"), icon=":material/resume:", key="train_resume_from"):
                _go_on(run, step)


def _beyond_hope(now: Status) -> bool:
    """There is nothing to go on with: it is done, or what made it diverge would do so again."""
    lost = now.reason in (Reason.DIVERGED, Reason.COLLAPSED)
    return lost or now.state is State.SUCCEEDED


def _go_on(run: RunPaths, step: int) -> None:
    with errors_shown():
        with st.spinner(t("Checking that it is the same run")):
            model_libraries()
            resumed = lifecycle.resume_training(run, step)
        current.choose(view=WATCH, run=resumed.root.name)
        st.rerun()
