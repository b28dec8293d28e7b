"""A failed run in words: what happened, why, and new runs with the fix in."""

from __future__ import annotations

import streamlit as st

from core.chat.render import literal
from core.jobs.reasons import Fix
from core.jobs.state import Status
from core.paths import RunPaths
from core.training import lifecycle
from pages._ui.shell import current
from pages._ui.shell.common import errors_shown, model_libraries, show_error
from pages._ui.shell.language import from_core, t
from pages._ui.train.state import WATCH


def draw(run: RunPaths, now: Status) -> None:
    """The error, and for a training run up to three fixes, the likeliest first."""
    if now.error is None:
        return
    show_error(now.error)
    if now.kind != "train":
        return
    fault = lifecycle.fault_of(run, now)
    if fault.fixes:
        st.markdown(t("**What to try**, the likeliest first:"))
    for number, fix in enumerate(fault.fixes):
        with st.container(horizontal=True, vertical_alignment="center"):
            if not fix.overrides:
                st.markdown(f"{number + 1}. {literal(from_core(fix.label))}")
                continue
            st.markdown(f"{number + 1}. {literal(from_core(fix.label))}", width="content")
            if st.button(
                t("New run with this"), key=f"train_fix_{number}", icon=":material/build:"
            ):
                _start(run, fix)


def _start(run: RunPaths, fix: Fix) -> None:
    with errors_shown():
        with st.spinner(t("Looking at everything the run needs")):
            model_libraries()
            new = lifecycle.change_training(run, fix.overrides)
        current.choose(view=WATCH, run=new.root.name)
        st.rerun()
