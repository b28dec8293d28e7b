"""A new run: one button with what stands against it; below, form and source side by side."""

from __future__ import annotations

import streamlit as st

from core.chat.render import literal
from core.errors import UserError
from core.jobs import api, locks
from core.training import lifecycle
from core.training.preflight import Preflight
from core.training.spec import TrainSpec
from pages._ui.shell import current, words
from pages._ui.shell.common import errors_shown, form_and_rest, model_libraries, show_error
from pages._ui.shell.language import t
from pages._ui.train import (
    choose as train_choose,
)
from pages._ui.train import (
    form as train_form,
)
from pages._ui.train import (
    preflight as train_preflight,
)
from pages._ui.train import (
    source as train_source,
)
from pages._ui.train.state import WATCH

#: Pixels of the form; the source takes the rest.
_FORM_WIDTH = 470


def draw() -> None:
    """The view."""
    model_libraries()
    chosen = None
    with errors_shown():
        chosen = train_choose.choose()
    if chosen is None:
        return
    # Drawn when the form has been read, but above it: most people change nothing and start.
    presets, ready = st.container(), st.container(border=True)
    form, source = form_and_rest(_FORM_WIDTH)
    spec: TrainSpec | None = None
    with form, errors_shown():
        spec = train_form.settings(*chosen, presets)
    if spec is None:
        return
    with source:
        try:
            spec = train_source.draw(spec)
        except UserError as error:
            show_error(error)
            return
        train_preflight.command(spec)
    with ready, errors_shown():
        name = train_form.run_name(spec.dataset)
        _start(train_preflight.draw(spec), name)


def _start(found: Preflight, name: str) -> None:
    holder = locks.device_holder()
    if holder is not None:
        st.info(
            t(
                "The device is held by {what}; this run will wait its turn.",
                what=literal(words.holding(holder.what, holder.run)),
            ),
            icon=":material/hourglass:",
        )
        if not holder.run:
            st.caption(t("Unload the chat on the Compare page to let it start."))
    parent = st.session_state.get("train_parent")
    if not st.button(
        t("Start"),
        type="primary",
        icon=":material/play_arrow:",
        key="train_start",
        disabled=bool(found.problems),
    ):
        return
    try:
        run = lifecycle.start_training(found, name=name, parent=parent)
    except api.AlreadyStarted as error:
        said = t("Already started as {name}", name=literal(current.name_of(error.run)))
        st.toast(said, icon=":material/info:")
        current.choose(view=WATCH, run=error.run)
        st.rerun()
    st.session_state.pop("train_parent", None)
    current.choose(view=WATCH, run=run.root.name)
    st.rerun()
