"""What the parts of the Dataset page share: section, chosen dataset, chat bubbles, running job."""

from __future__ import annotations

from collections.abc import Sequence

import streamlit as st

from core.chat.render import code, literal, safe_markdown
from core.conversation import Conversation
from core.data import store
from core.jobs import api
from core.jobs.state import ACTIVE, State, Status
from pages._ui.shell import address, current, words
from pages._ui.shell.common import errors_shown, show_error
from pages._ui.shell.language import t, time_left, tn

#: Job kinds that make datasets.
KINDS = ("generate", "simulate")


def go(view: str, dataset: str = "") -> None:
    """Show another part of the page, with another dataset chosen."""
    current.choose(view=view, **({"dataset": dataset} if dataset else {}))
    st.rerun()


def choose_dataset() -> str:
    """A select box over the complete datasets; "" (and a hint) if there are none."""
    names = [s.name for s in store.list_datasets() if not s.problem]
    shown = current.chosen("dataset", names)
    if not names:
        st.info(
            t("There is no dataset yet. Build one in the Persona part, or import a file in the "
              "Files part."),
            icon=":material/lightbulb:",
        )  # fmt: skip
        return ""
    at = names.index(shown)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = st.selectbox(
            t("Dataset"), names, index=at, key=f"dataset-{shown}-{len(names)}", width=340
        )
        if chosen != shown:
            current.choose(dataset=chosen)
            st.rerun()
        current.link_to_next("train", chosen)
    return chosen


def bubbles(rows: Sequence[Conversation], width: int = 264) -> None:
    """Conversations as chat bubbles, as many side by side as the window has room for."""
    with st.container(horizontal=True):
        for row in rows:
            with st.container(border=True, width=width):
                _conversation(row)


def _conversation(row: Conversation) -> None:
    label = " · ".join(p for p in (words.intent(row.intent), words.kind(row.kind)) if p)
    st.caption(safe_markdown(label))
    replies = iter(row.loss)
    for message in row.messages:
        if message["role"] == "system":
            st.caption(t("System: {text}", text=safe_markdown(message["content"])))
            continue
        with st.chat_message(message["role"]):
            st.markdown(safe_markdown(message["content"]))
            if message["role"] == "assistant" and not next(replies):
                st.caption(t("context only, not learned"))


def jobs_at_work() -> list[str]:
    """Ids of the dataset jobs that run or wait."""
    return [r.id for r in api.list_runs() if r.kind in KINDS and r.state in ACTIVE]


def job_panel() -> None:
    """Progress of the dataset jobs that run, and the outcome of the one that the address names."""
    active = jobs_at_work()
    known = [r.id for r in api.list_runs() if r.kind in KINDS]
    asked = current.chosen("build", known) if "build" in st.query_params else ""
    ids = list(dict.fromkeys([*active, *([asked] if asked in known else [])]))

    @st.fragment(run_every="1s" if active else None)
    def panel() -> None:
        for run_id in ids:
            with errors_shown():
                status = api.status(api.open_run(run_id))
                _one(status)
                if run_id in active and status.final:
                    current.choose(build=run_id)
                    st.rerun()

    if ids:
        panel()


def _one(status: Status) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        with st.container():
            _progress(status)
        if status.active:
            stopping = status.state is State.STOPPING
            if st.button(
                t("Stop"), key=f"stop-{status.id}", icon=":material/stop:", disabled=stopping
            ):
                with errors_shown():
                    api.stop(api.open_run(status.id))
            return
        made = (status.result or {}).get("name", "")
        if made:
            current.link_to_next("train", made, key=f"train-{status.id}")
            if st.button(t("Look at it"), key=f"open-{status.id}", icon=":material/table_rows:"):
                address.write(build=None)
                go("rows", made)
        if st.button(t("Close"), key=f"close-{status.id}", type="tertiary"):
            address.write(build=None)
            st.rerun()


def _progress(status: Status) -> None:
    name = current.name_of(status.id)
    if status.active:
        _active(status, name)
        return
    made = (status.result or {}).get("name", "")
    if status.state is State.SUCCEEDED and made:
        rows = int((status.result or {}).get("rows") or 0)
        done = t("{name} is saved as {dataset}.", name=literal(name), dataset=code(made))
        counted = tn("{n} row", "{n} rows", rows) if rows else ""
        st.success(f"{done} {counted}".strip(), icon=":material/check_circle:")
        return
    st.write(f"**{literal(name)}** · {literal(words.ending(status.state, status.reason))}")
    if status.error:
        show_error(status.error)


def _active(status: Status, name: str) -> None:
    if status.waiting_for:
        st.write(
            t("{name} waits for the device, held by {holder}", name=literal(name),
              holder=literal(words.holding(status.waiting_for)))
        )  # fmt: skip
        return
    counted = t("{done} of {total}", done=status.done, total=status.total) if status.total else ""
    parts = (words.doing(status.stage), counted, time_left(status.eta_seconds))
    said = " · ".join(p for p in parts if p)
    st.progress(status.share, text=f"{literal(name)}: {literal(said)}")
    if status.stalled:
        st.warning(t("The job has printed nothing for a while."), icon=":material/hourglass:")
