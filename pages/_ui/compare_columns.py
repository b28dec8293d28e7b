"""Choosing what stands in each column, loading it, and seeing what it costs."""

from __future__ import annotations

import streamlit as st

from core import fsio
from core.chat.session import ChatSession
from core.chat.sides import MAX_SIDES, Loadable, SideSpec
from core.errors import UserError
from pages._ui import compare_state
from pages._ui.common import show_error


def draw(session: ChatSession | None) -> list[SideSpec]:
    """The pickers; returns the chosen columns."""
    models = compare_state.found()
    with st.expander("Columns", icon=":material/view_column:", expanded=session is None):
        count = st.segmented_control(
            "How many", list(range(2, MAX_SIDES + 1)), default=2, key="compare_count"
        )
        sides = [
            _pick(column, index, models) for index, column in enumerate(st.columns(count or 2))
        ]
        _loaded(sides)
    return sides


def _pick(column: object, index: int, models: list[Loadable]) -> SideSpec:
    letter = compare_state.LETTERS[index]
    with column:  # type: ignore[attr-defined]
        choice = st.selectbox(
            f"Column {letter.upper()}",
            range(len(models)),
            index=_default(index, models),
            format_func=lambda i: models[i].label,
            key=f"compare_side_{letter}",
        )
        model = models[choice or 0]
        system = ""
        if model.kind == "prompted":
            system = st.text_area(
                "Persona system prompt", key=f"compare_system_{letter}", height=120
            )
    return model.side(letter, system)


def _default(index: int, models: list[Loadable]) -> int:
    """Base on the left, the newest tuned model beside it, else the persona prompt."""
    if index == 0:
        return 0
    tuned = [i for i, m in enumerate(models) if m.kind in ("merged", "adapter")]
    order = [*tuned, 1]
    return order[min(index - 1, len(order) - 1)]


def _loaded(sides: list[SideSpec]) -> None:
    worker = compare_state.worker()
    if worker.ready(sides):
        held = fsio.human_bytes(worker.memory.get("process", 0))
        st.caption(f":material/check_circle: Loaded; the chat process holds {held}.")
        st.button("Unload", icon=":material/eject:", on_click=worker.close, key="compare_unload")
    else:
        st.button(
            "Load now",
            icon=":material/download:",
            help="Otherwise the first message loads them.",
            on_click=make_ready,
            args=(sides,),
            key="compare_load",
        )


def make_ready(sides: list[SideSpec]) -> bool:
    """Load what is missing; problems are shown per column. True if any column can answer."""
    worker = compare_state.worker()
    if worker.ready(sides):
        return True
    with st.spinner("Loading models", show_time=True):
        errors = worker.load(sides)
    for side in sides:
        if side.id in errors:
            show_error(UserError(**errors[side.id], where=f"column {side.id.upper()}"))
    return len(errors) < len(sides)
