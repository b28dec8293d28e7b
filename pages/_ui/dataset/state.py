"""What the parts of the Dataset page share: section, chosen dataset, chat bubbles, running job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import streamlit as st

from core.chat.render import code, literal, safe_markdown
from core.conversation import Conversation
from core.data import store
from core.errors import UserError
from core.jobs import api
from core.jobs.state import ACTIVE, Status
from pages._ui.shell.common import errors_shown, show_error
from pages._ui.shell.language import time_left

#: Job kinds that make datasets.
KINDS = ("generate", "simulate")


def section(labels: Mapping[str, str]) -> str:
    """The part of the page to draw; kept in the address, so that a reload shows the same."""
    asked = st.query_params.get("view", "")
    default = asked if asked in labels else next(iter(labels))
    chosen = (
        st.segmented_control(
            "Part of the page",
            list(labels),
            default=default,
            format_func=lambda k: labels[k],
            label_visibility="collapsed",
            key=f"section-{default}",
        )
        or default
    )
    if chosen != asked:
        st.query_params["view"] = chosen
        if asked in labels or chosen != default:
            st.rerun()
    return chosen


def go(view: str, dataset: str = "") -> None:
    """Show another part of the page, with another dataset chosen."""
    st.query_params["view"] = view
    if dataset:
        st.query_params["dataset"] = dataset
    st.rerun()


def choose_dataset() -> str:
    """A select box over the complete datasets; "" (and a hint) if there are none."""
    names = [s.name for s in store.list_datasets() if not s.problem]
    if not names:
        st.info(
            "There is no dataset yet. Build one in the Persona part, or import a file in the "
            "Files part.",
            icon=":material/lightbulb:",
        )
        return ""
    asked = st.query_params.get("dataset", "")
    at = names.index(asked) if asked in names else 0
    chosen = st.selectbox("Dataset", names, index=at, key=f"dataset-{names[at]}-{len(names)}")
    if chosen != asked:
        st.query_params["dataset"] = chosen
    return chosen


def bubbles(rows: Sequence[Conversation], width: int = 264) -> None:
    """Conversations as chat bubbles, as many side by side as the window has room for."""
    with st.container(horizontal=True):
        for row in rows:
            with st.container(border=True, width=width):
                _conversation(row)


def _conversation(row: Conversation) -> None:
    label = " · ".join(p for p in (row.intent, row.locale, row.kind) if p)
    st.caption(safe_markdown(label))
    replies = iter(row.loss)
    for message in row.messages:
        if message["role"] == "system":
            st.caption(f"System: {safe_markdown(message['content'])}")
            continue
        with st.chat_message(message["role"]):
            st.markdown(safe_markdown(message["content"]))
            if message["role"] == "assistant" and not next(replies):
                st.caption("context only, not learned")


def job_panel() -> bool:
    """Progress of dataset jobs that run, and the outcome of the one started last.

    Returns whether one runs or waits.
    """
    active = [r for r in api.list_runs() if r.kind in KINDS and r.state in ACTIVE]
    asked = st.query_params.get("run", "")
    names = list(dict.fromkeys([*(r.id for r in active), *([asked] if asked else [])]))
    running = bool(active)
    if not names:
        return running

    @st.fragment(run_every="1s" if running else None)
    def panel() -> None:
        for name in names:
            try:
                status = api.status(api.open_run(name))
            except UserError:
                continue
            _one(status)
            if running and status.final:
                st.query_params["run"] = name
                st.rerun()

    panel()
    return running


def _one(status: Status) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        with st.container():
            _progress(status)
        if status.active:
            if st.button(
                "Stop",
                key=f"stop-{status.id}",
                icon=":material/stop:",
                disabled=status.state.name == "STOPPING",
            ):
                with errors_shown():
                    api.stop(api.open_run(status.id))
            return
        made = (status.result or {}).get("name", "")
        if made and st.button("Open dataset", key=f"open-{status.id}", type="primary"):
            del st.query_params["run"]
            go("rows", made)
        if st.button("Close", key=f"close-{status.id}"):
            st.query_params.pop("run", None)
            st.rerun()


def _progress(status: Status) -> None:
    if status.active:
        if status.waiting_for:
            st.write(
                f"**{literal(status.name)}** waits for the device: {literal(status.waiting_for)}"
            )
            return
        share = min(1.0, status.done / status.total) if status.total else 0.0
        counted = f"{status.done:,}/{status.total:,}" if status.total else ""
        parts = (status.stage or "starting", counted, time_left(status.eta_seconds))
        st.progress(
            share, text=f"{literal(status.name)}: {literal(' · '.join(p for p in parts if p))}"
        )
        if status.stalled:
            st.warning("The job has printed nothing for a while.", icon=":material/hourglass:")
        return
    if status.error:
        st.write(f"**{literal(status.name)}** {literal(status.state.name.lower())}")
        show_error(status.error)
        return
    rows = (status.result or {}).get("rows")
    made = (status.result or {}).get("name", "")
    done = f"saved as {code(made)}" if made else status.state.name.lower()
    st.success(
        f"{literal(status.name)}: {done}" + (f", {rows:,} rows" if rows else ""),
        icon=":material/check_circle:",
    )
