"""Choosing what stands in each column, loading it, and seeing what it costs."""

from __future__ import annotations

import streamlit as st

from core import fsio
from core.chat import endpoint
from core.chat.columns import MAX_COLUMNS, Column
from core.chat.render import code, literal
from core.chat.session import ChatSession
from core.errors import UserError
from core.jobs.locks import device_holder
from pages._ui.compare import state as compare_state
from pages._ui.shell.common import errors_shown, show_error

_SERVED = Column("", "endpoint", "OpenAI-compatible server", "", base_url="http://host")


def draw(session: ChatSession | None) -> list[Column]:
    """The pickers; returns the chosen columns (fewer while a form is incomplete)."""
    _restore(session)
    models = [*compare_state.found(), _SERVED]
    with st.expander("Columns", icon=":material/view_column:", expanded=session is None):
        st.session_state.setdefault("compare_count", 2)
        count = st.segmented_control(
            "Number of columns", list(range(2, MAX_COLUMNS + 1)), key="compare_count"
        )
        boxes = st.columns(count or 2)
        picked = [_pick(box, index, models) for index, box in enumerate(boxes)]
        sides = [side for side in picked if side is not None]
        _loaded(sides)
    _device_line()
    return sides


def _restore(session: ChatSession | None) -> None:
    """Opening a conversation selects its columns again; afterwards the pickers are the user's."""
    opened = session.transcript.id if session else ""
    if session is None or st.session_state.get("compare_opened") == opened:
        return
    st.session_state["compare_opened"] = opened
    sides = session.transcript.columns
    st.session_state["compare_count"] = max(2, len(sides))
    known = {(m.kind, m.model, m.adapter): m.label for m in compare_state.found()}
    for side in sides:
        label = known.get((side.kind, side.model, side.adapter))
        if side.kind == "endpoint":
            label = _SERVED.label
            st.session_state[f"compare_url_{side.id}"] = side.base_url
            st.session_state[f"compare_served_{side.id}"] = side.model
            st.session_state[f"compare_key_{side.id}"] = side.key_env
        if label:
            st.session_state[f"compare_side_{side.id}"] = label
        if side.system:
            st.session_state[f"compare_system_{side.id}"] = side.system


def _pick(
    box: st.delta_generator.DeltaGenerator, index: int, models: list[Column]
) -> Column | None:
    letter = compare_state.LETTERS[index]
    by_label = {m.label: m for m in models}
    key = f"compare_side_{letter}"
    if st.session_state.get(key) not in by_label:
        st.session_state[key] = _default(index, models)
    with box:
        label = st.selectbox(f"Column {letter.upper()}", list(by_label), key=key)
        model = by_label[label]
        if model.kind == "endpoint":
            return _endpoint(letter)
        system = ""
        if model.kind == "prompted":
            st.session_state.setdefault(f"compare_system_{letter}", compare_state.persona().system)
            system = st.text_area(
                "Persona as a system prompt",
                key=f"compare_system_{letter}",
                height=120,
                help="What prompting alone gives, without any training: the free baseline.",
            )
    return model.placed(letter, system)


def _endpoint(letter: str) -> Column | None:
    url = st.text_input(
        "Server address", key=f"compare_url_{letter}", placeholder="http://127.0.0.1:8000/v1"
    )
    model = st.text_input("Model name on the server", key=f"compare_served_{letter}")
    key_env = st.text_input(
        "Variable with the key",
        key=f"compare_key_{letter}",
        placeholder="none",
        help="Name of an environment variable of this app. The key itself is never stored.",
    )
    if not url:
        st.caption("Give the address of a running server.")
        return None
    with errors_shown():
        side = Column(
            letter, "endpoint", model or "served model", model, base_url=url, key_env=key_env
        )
        if st.button("Check", key=f"compare_check_{letter}", icon=":material/lan:"):
            names = endpoint.check(side)
            st.caption("It serves: " + ", ".join(f"{code(n)}" for n in names[:20]))
        if model:
            return side
        st.caption("Press Check to see which models it serves, then name one.")
    return None


def _default(index: int, models: list[Column]) -> str:
    """Base on the left, the newest tuned model beside it, else the persona prompt."""
    tuned = [m.label for m in models if m.kind in ("merged", "adapter")]
    order = [models[0].label, *tuned[: MAX_COLUMNS - 2], models[1].label]
    return order[min(index, len(order) - 1)]


def _loaded(sides: list[Column]) -> None:
    worker = compare_state.worker()
    with st.container(horizontal=True, vertical_alignment="center"):
        if worker.alive and worker.memory:
            st.button(
                "Unload", icon=":material/eject:", on_click=worker.close, key="compare_unload",
                help="Ends the chat process, which frees all its memory and the device.",
            )  # fmt: skip
        load = not worker.ready(sides) and st.button(
            "Load now", icon=":material/download:", key="compare_load",
            help="Otherwise the first message loads them.",
        )  # fmt: skip
        if load and make_ready(sides):
            st.rerun()
        st.caption(_memory_line(sides))


def _memory_line(sides: list[Column]) -> str:
    worker = compare_state.worker()
    if not (worker.alive and worker.memory):
        return "Nothing is loaded."
    held = fsio.human_bytes(worker.memory.get("process", 0))
    models = [v for k, v in worker.memory.items() if k not in ("process", "gpu")]
    state = "Loaded" if worker.ready(sides) else "Other columns are loaded"
    copies = f"{len(models)} cop{'y' if len(models) == 1 else 'ies'} of weights"
    line = f"{state}: {copies} ({fsio.human_bytes(sum(models))}); the chat process holds {held}"
    if "gpu" in worker.memory:
        line += f", on the GPU {fsio.human_bytes(worker.memory['gpu'])}"
    return line + "."


def _device_line() -> None:
    holder = device_holder()
    if holder is not None and holder.what != "chat":
        st.info(
            f"The device is in use by **{literal(holder.what)}**. Chat can load models when it has "
            "finished; a server column works meanwhile.",
            icon=":material/lock_clock:",
        )


def make_ready(sides: list[Column]) -> bool:
    """Load what is missing; problems are shown per column. True if any column can answer."""
    worker = compare_state.worker()
    if worker.ready(sides) or not any(s.local for s in sides):
        return True
    adapters = {m.adapter: m for m in compare_state.found() if m.checkpoint}
    with errors_shown(), st.spinner("Loading models", show_time=True):
        for side in sides:
            if side.adapter in adapters:
                adapters[side.adapter].prepare()
        errors = worker.load(sides)
        for side in sides:
            if side.id in errors:
                where = f"column {side.id.upper()}"
                show_error(UserError.from_dict({**errors[side.id], "where": where}))
        return len(errors) < len(sides)
    return any(not s.local for s in sides)
