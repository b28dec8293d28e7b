"""Batch tab: many prompts through all columns, the most changed replies first."""

from __future__ import annotations

import streamlit as st

from core.chat import prompts as packs
from core.chat.batch import BatchRow, most_changed_first, parse_prompts
from core.chat.batch_run import BatchRun
from core.chat.render import literal, safe_markdown
from core.chat.sides import SideSpec
from core.inference.settings import ChatSettings
from pages._ui.compare import columns as compare_columns
from pages._ui.compare import state as compare_state
from pages._ui.compare.turns import DIFFERENCES, FORMATTED, PERSONA, shown, stats
from pages._ui.shell.common import errors_shown, show_error
from pages._ui.shell.language import time_left

#: Rows drawn at once; a page of a thousand replies would be slow to scroll.
_PAGE = 20
_OWN = "My own file"


def draw(sides: list[SideSpec], settings: ChatSettings, system: str) -> None:
    """The whole tab."""
    left, right = st.columns([2, 1])
    source = left.selectbox("Prompts", [*packs.packs(), _OWN], key="compare_pack")
    chosen: list[str] = []
    with errors_shown():  # the newest dataset's probes may be damaged
        chosen = _own() if source == _OWN else packs.load(source)
    count = right.number_input(
        "How many", 1, max(1, len(chosen)), min(20, max(1, len(chosen))), key="compare_batch_n"
    )
    run = compare_state.batches().get("latest")
    busy = run is not None and run.running
    with st.container(horizontal=True):
        if st.button(
            "Run", icon=":material/play_arrow:", key="compare_batch_run", type="primary",
            disabled=busy or not chosen,
        ):  # fmt: skip
            _start(chosen[: int(count)], sides, settings, system)
        if run is not None and busy:
            st.button("Stop", key="compare_batch_stop", on_click=run.stop)
    if run is not None:
        _follow(run)


def _own() -> list[str]:
    upload = st.file_uploader(
        "One prompt a line, or JSONL with `prompt` or `messages`",
        type=["txt", "jsonl"],
        key="compare_batch_file",
    )
    if upload is None:
        return []
    notes: list[str] = []
    with errors_shown():
        prompts = parse_prompts(upload.getvalue(), upload.name, notes)
        for note in notes:
            st.info(literal(note))
        return prompts
    return []


def _start(chosen: list[str], sides: list[SideSpec], settings: ChatSettings, system: str) -> None:
    with errors_shown():
        if sides and compare_columns.make_ready(sides):
            compare_state.batches()["latest"] = BatchRun(
                chosen, sides, settings, compare_state.worker(), compare_state.endpoints(), system
            ).start()
            st.rerun()


def _follow(run: BatchRun) -> None:
    """Results; while it runs this part renews itself."""

    @st.fragment(run_every="2s" if run.running else None)
    def live() -> None:
        done, total = len(run.rows), len(run.prompts)
        if run.running:
            left = time_left(run.eta_seconds)
            st.progress(done / total, f"{done}/{total} prompts{' · ' + left if left else ''}")
        elif st.session_state.get("compare_batch_seen") != str(run.file):
            st.session_state["compare_batch_seen"] = str(run.file)
            st.rerun()  # once, so that the timer ends
        if run.error:
            show_error(run.error)
        if run.rows:
            _results(run)

    live()


def _results(run: BatchRun) -> None:
    view = st.segmented_control(
        "View", (FORMATTED, DIFFERENCES, PERSONA), default=DIFFERENCES, key="compare_batch_view"
    )
    rows = most_changed_first(list(run.rows), run.sides[0].id)
    changed = sum(row.change(run.sides[0].id) > 0 for row in rows)
    st.caption(
        f"{changed} of {len(rows)} prompts got another reply than from "
        f"{safe_markdown(run.sides[0].label)}. Most changed first. KL: mean divergence of each "
        "token's distribution from that column's, in nats; 0 is no change."
    )
    names = list(compare_state.persona().names)
    for index, row in enumerate(rows[:_PAGE]):
        _row(run, row, index, view or DIFFERENCES, names)
    if len(rows) > _PAGE:
        st.caption(f"The other {len(rows) - _PAGE} rows are in the file.")
    if not run.running and run.file.is_file():
        st.download_button(
            "All rows as JSON", run.file.read_bytes(), run.file.name, "application/json",
            icon=":material/download:", key="compare_batch_json", on_click="ignore",
        )  # fmt: skip


def _row(run: BatchRun, row: BatchRow, index: int, view: str, names: list[str]) -> None:
    base = run.sides[0].id
    with st.container(border=True, key=f"batch_{index}"):
        st.markdown(f"**{safe_markdown(row.prompt[:500])}**")
        st.caption(f"changed {row.change(base):.0%}")
        for column, side in zip(st.columns(len(run.sides)), run.sides, strict=True):
            reply = row.replies[side.id]
            other = run.sides[1] if side.id == base and len(run.sides) > 1 else run.sides[0]
            with column:
                kl = f" · KL {row.kl[side.id]:.3f}" if side.id in row.kl else ""
                st.caption(f"**{safe_markdown(side.label)}**{kl}")
                if reply.error:
                    st.error(safe_markdown(reply.error["what"]))
                st.markdown(shown(reply.text, row.replies[other.id].text, view, names))
                st.caption(stats(reply))
