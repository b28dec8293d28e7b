"""One run of the whole pipeline: its stages as they come, and what to do when it is over."""

from __future__ import annotations

import streamlit as st

from core.chat.render import literal
from core.errors import UserError
from core.jobs import api
from core.jobs.state import State, Status
from core.paths import RunPaths
from core.pipeline import following
from core.pipeline.following import StageView
from core.pipeline.stages import STAGES
from pages._ui.shell import address, current, words
from pages._ui.shell.common import errors_shown, show_error
from pages._ui.shell.language import N_, duration, percent, t, time_left

#: Title, and the page and kind of object that tell more; '' where its own page says nothing more.
_STAGES: dict[str, tuple[str, str, str]] = {
    "dataset": (N_("Dataset"), "pages/1_Dataset.py", "build"),
    "train": (N_("Train"), "pages/2_Train.py", "run"),
    "sweep": (N_("Find the best checkpoint"), "", ""),
    "merge": (N_("Merge and verify"), "pages/3_Merge.py", "merge"),
    "evaluate": (N_("Scorecard"), "pages/4_Compare.py", "score"),
}

#: How many stages were over at the last look.
_DONE = "start_stages_done"


def panel(run: RunPaths, live: bool) -> None:
    """Draw; within a fragment that renews itself while the run lives."""
    with errors_shown():
        now = api.status(run)
        if live and now.final:
            st.rerun()
        stages = following.stages_of(run)
        done, before = sum(view.done for view in stages), st.session_state.get(_DONE)
        st.session_state[_DONE] = done
        if live and before not in (None, done):
            st.rerun()  # what stands around it has changed, too
        with st.container(border=True):
            _head(run, now)
            for view in stages:
                _stage(view, now)
            if now.final:
                _end(run, now, stages)


def _head(run: RunPaths, now: Status) -> None:
    with st.container(horizontal=True, vertical_alignment="center"):
        owner = current.seen().owner_of(run=run.root.name)
        st.subheader(literal(owner.title if owner else now.name))
        st.caption(words.ending(now.state, now.reason), help=literal(run.root.name))
        if now.active and st.button(
            t("Stop"),
            icon=":material/stop:",
            key="start_stop",
            disabled=now.state is State.STOPPING,
        ):
            api.stop(run)
            st.rerun(scope="fragment")
        if st.button(t("New persona"), icon=":material/add:", key="start_new", type="tertiary"):
            address.write(all=None, new="1")
            st.rerun()
    if now.active:
        left = time_left(now.eta_seconds) or t("estimating the time")
        st.progress(now.share, text=f"{percent(now.share)} · {left}")


def _stage(view: StageView, whole: Status) -> None:
    title, page, kind = _STAGES[view.stage]
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"{_icon(view)} **{t(title)}**")
        st.caption(_said(view, whole))
        if (
            view.run
            and page
            and st.button(
                t("Details"),
                key=f"start_{view.stage}",
                type="tertiary",
                icon=":material/open_in_new:",
            )
        ):
            current.go(page, **{kind: view.run})


def _icon(view: StageView) -> str:
    if view.now is None:
        return ":material/radio_button_unchecked:"
    if view.done:
        return ":green[:material/check_circle:]"
    if view.now.active:
        return ":material/hourglass_top:"
    return ":orange[:material/stop_circle:]"


def _said(view: StageView, whole: Status) -> str:
    now = view.now
    if now is None:
        return t("waits its turn") if whole.active else t("not begun")
    if now.final:
        took = duration(now.elapsed_seconds or 0.0)
        ended = words.ending(now.state, now.reason)
        verdict = str((now.result or {}).get("verdict") or "")
        return " · ".join(p for p in (words.verdict(verdict) if verdict else ended, took) if p)
    if now.waiting_for:
        return t(
            "waits for the device, held by {holder}", holder=literal(words.holding(now.waiting_for))
        )
    counted = t("{done} of {total}", done=now.done, total=now.total) if now.total else ""
    parts = (literal(words.doing(now.stage)), counted, time_left(now.eta_seconds))
    return " · ".join(p for p in parts if p)


def _end(run: RunPaths, now: Status, stages: list[StageView]) -> None:
    if now.state is State.SUCCEEDED:
        merge = next(v.run for v in stages if v.stage == "merge")
        with st.container(horizontal=True):
            current.link_to_next("compare", merge)
        return
    if now.error:
        show_error(now.error)
    kept = sum(view.done for view in stages)
    st.caption(t("{n} of {of} steps are done and kept.", n=kept, of=len(STAGES)))
    if st.button(t("Resume"), type="primary", icon=":material/play_arrow:", key="start_resume"):
        again = _resumed(run)
        if again:
            current.choose(all=again)
            st.rerun()


def _resumed(run: RunPaths) -> str:
    try:
        return following.resume(run).root.name
    except api.AlreadyStarted as already:
        return already.run
    except UserError as error:
        show_error(error)
        return ""
