"""Batch tab: many prompts through all columns, the most changed replies first."""

from __future__ import annotations

from typing import Literal

import streamlit as st

from core.chat import prompts as packs
from core.chat.batch import BatchRow, most_changed_first, parse_prompts
from core.chat.batch_run import BatchRun
from core.chat.personas import PersonaHint
from core.chat.render import literal, safe_markdown
from pages._ui.compare import columns as compare_columns
from pages._ui.compare import state, waiting
from pages._ui.compare.state import Setup
from pages._ui.compare.turns import VIEWS, View, shown, stats
from pages._ui.shell import typed, words
from pages._ui.shell.common import errors_shown, show_error
from pages._ui.shell.language import N_, from_core, number, percent, t, time_left, tn

Source = Literal["typed", "pack", "file"]
_SOURCES: dict[Source, str] = {
    "typed": N_("Typed here"),
    "pack": N_("A set of questions"),
    "file": N_("A file"),
}
_TYPED = "compare_batch_typed"
#: Rows drawn at once; a page of a thousand replies would be slow to scroll.
_PAGE = 20


def draw(setup: Setup) -> None:
    """The whole tab."""
    source = st.segmented_control(
        t("Prompts"), list(_SOURCES), default="typed", required=True, key="compare_batch_source",
        format_func=lambda s: t(_SOURCES[s]), persist_state="session",
    )  # fmt: skip
    chosen = {"typed": _typed, "pack": _pack, "file": _file}[source or "typed"]()
    run = state.batches().get("latest")
    busy = run is not None and run.running
    with st.container(horizontal=True, vertical_alignment="center"):
        pressed = st.button(
            t("Run"), icon=":material/play_arrow:", key="compare_batch_run", type="primary",
            disabled=busy or not chosen or not setup.columns,
        )  # fmt: skip
        if run is not None and busy:
            st.button(t("Stop"), key="compare_batch_stop", on_click=run.stop, shortcut="Esc")
        if chosen:
            st.caption(tn("{n} prompt", "{n} prompts", len(chosen)))
    if pressed:
        _start(chosen, setup)
    if run is not None:
        _follow(run)


def _typed() -> list[str]:
    typed.recall("batch", {_TYPED: None})
    text = st.text_area(
        t("One prompt a line"),
        key=_TYPED,
        height=140,
        placeholder=f"{t('Who are you?')}\n{t('Who made you?')}",
        persist_state="session",
    )
    typed.keep("batch", [_TYPED])
    return _parsed(text.encode(), t("what was typed")) if text.strip() else []


def _pack() -> list[str]:
    dataset = state.persona().dataset
    left, right = st.columns([2, 1])
    name = left.selectbox(
        t("Questions"), packs.packs(dataset), key="compare_pack", format_func=_pack_title
    )
    chosen: list[str] = []
    with errors_shown():  # the dataset's probes may be damaged
        chosen = packs.load(name, dataset)
    most = max(1, len(chosen))
    count = right.number_input(t("How many"), 1, most, min(20, most), key="compare_batch_n")
    return chosen[: int(count)]


def _pack_title(name: str) -> str:
    return t("Questions kept out of training") if name == packs.HELD_OUT else words.suite(name)


def _file() -> list[str]:
    upload = st.file_uploader(
        t("One prompt a line, or JSONL with `prompt` or `messages`"),
        type=["txt", "jsonl"],
        key="compare_batch_file",
    )
    return _parsed(upload.getvalue(), upload.name) if upload is not None else []


def _parsed(data: bytes, where: str) -> list[str]:
    notes: list[str] = []
    with errors_shown():
        prompts = parse_prompts(data, where, notes)
        for note in notes:
            st.info(literal(from_core(note)))
        return prompts
    return []


def _start(chosen: list[str], setup: Setup) -> None:
    with errors_shown():
        if (holder := waiting.busy(setup.columns)) is not None:
            st.info(t("{who} is using the device.", who=waiting.said(holder)))
            return
        compare_columns.make_ready(setup.columns)
        state.batches()["latest"] = BatchRun(
            chosen, setup.columns, setup.settings, state.worker(), state.endpoints(), setup.system
        ).start()
        st.rerun()


def _follow(run: BatchRun) -> None:
    """Results; while it runs this part renews itself."""

    @st.fragment(run_every="2s" if run.running else None)
    def live() -> None:
        done, total = len(run.rows), len(run.prompts)
        if run.running:
            line = t("{done} of {total} prompts", done=done, total=total)
            left = time_left(run.eta_seconds)
            st.progress(done / total, f"{line} · {left}" if left else line)
        elif st.session_state.get("compare_batch_seen") != str(run.file):
            st.session_state["compare_batch_seen"] = str(run.file)
            st.rerun()  # once, so that the timer ends
        if run.error:
            show_error(run.error)
        if run.rows:
            _results(run)

    live()


def _results(run: BatchRun) -> None:
    views: list[View] = ["formatted", "differences", "persona"]
    view = st.segmented_control(
        t("Show as"), views, default="differences", required=True, key="compare_batch_view",
        format_func=lambda v: t(VIEWS[v]),
    )  # fmt: skip
    first = run.columns[0]
    rows = most_changed_first(list(run.rows), first.id)
    if len(run.columns) > 1:
        changed = sum(row.change(first.id) > 0 for row in rows)
        base = safe_markdown(compare_columns.title(first))
        st.caption(
            t(
                "{changed} of {total} prompts got another reply than from {base}. Most changed "
                "first.",
                changed=changed,
                total=len(rows),
                base=base,
            ),
            help=t(
                "KL: mean divergence of each token's distribution from the first column's, in "
                "nats; 0 is no change."
            ),
        )
    hint = state.persona()
    for index, row in enumerate(rows[:_PAGE]):
        _row(run, row, index, view or "differences", hint)
    if len(rows) > _PAGE:
        st.caption(
            tn("{n} more row is in the file.", "{n} more rows are in the file.", len(rows) - _PAGE)
        )
    if not run.running and run.file.is_file():
        st.download_button(
            t("All rows as JSON"), run.file.read_bytes(), run.file.name, "application/json",
            icon=":material/download:", key="compare_batch_json", on_click="ignore",
        )  # fmt: skip


def _row(run: BatchRun, row: BatchRow, index: int, view: View, hint: PersonaHint) -> None:
    base = run.columns[0].id
    with st.container(border=True, key=f"batch_{index}"):
        st.markdown(f"**{safe_markdown(row.prompt[:500])}**")
        if len(run.columns) > 1:
            st.caption(t("{share} changed", share=percent(row.change(base))))
        for box, column in zip(st.columns(len(run.columns)), run.columns, strict=True):
            reply = row.replies[column.id]
            other = run.columns[1] if column.id == base and len(run.columns) > 1 else run.columns[0]
            with box:
                kl = f" · KL {number(round(row.kl[column.id], 3))}" if column.id in row.kl else ""
                st.caption(f"**{safe_markdown(compare_columns.title(column))}**{kl}")
                if reply.error:
                    st.error(safe_markdown(from_core(reply.error["what"])))
                st.markdown(shown(reply.text, row.replies[other.id].text, view, hint))
                st.caption(stats(reply))
