"""The checkpoints of a run, and going on from one of them."""

from __future__ import annotations

import streamlit as st

from core import fsio
from core.jobs.state import ACTIVE, Status
from core.paths import RunPaths
from core.training import lifecycle
from pages._ui.shell.common import errors_shown, model_libraries
from pages._ui.train.state import WATCH, go_to


def draw(run: RunPaths, now: Status) -> None:
    """List them; offer to resume once the run is over."""
    with errors_shown():
        found = lifecycle.checkpoints_of(run)
        if not found:
            st.caption("None yet.")
            return
        st.dataframe(
            [
                {
                    "step": c.step,
                    "file": c.path.name,
                    "size": fsio.human_bytes(c.size),
                    "state": "whole" if c.whole else c.problem,
                }
                for c in found
            ],
            hide_index=True,
        )
        if now.state in ACTIVE:
            return
        steps = lifecycle.training_spec(run).steps
        usable = [c.step for c in found if c.whole and c.step < steps]
        if not usable:
            st.caption("You can resume only from a complete checkpoint before the last step.")
            return
        with st.container(horizontal=True, vertical_alignment="bottom"):
            step = st.selectbox(
                "Resume from checkpoint",
                usable,
                index=len(usable) - 1,
                key="train_resume_step",
                width=200,
            )
            pressed = st.button(
                "Resume",
                icon=":material/resume:",
                key="train_resume",
                help="A new run that ends with the very weights this one would have had.",
            )
        if pressed:
            with st.spinner("Checking that it is the same run"):
                model_libraries()
                resumed = lifecycle.resume_training(run, step)
            go_to(WATCH, resumed.root.name)
            st.rerun()
