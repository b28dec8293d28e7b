"""The sidebar of every page: whose pages these are, how far it has come, what runs now."""

from __future__ import annotations

import streamlit as st

from core.chat.render import literal
from core.jobs.state import Summary
from core.pipeline.projects import Overview, Project, Standing, Step
from pages._ui.shell import current, running
from pages._ui.shell.language import N_, switch, t
from pages._ui.shell.words import verdict

#: Seconds between looks while something runs, and while nothing does: a job may be started in a
#: terminal or in another window.
_BUSY, _IDLE = 2.0, 15.0
HOME = "pages/0_Start.py"

_PAGES: tuple[tuple[str, str, Step], ...] = (
    ("pages/1_Dataset.py", N_("Dataset"), "built"),
    ("pages/2_Train.py", N_("Train"), "trained"),
    ("pages/3_Merge.py", N_("Merge"), "merged"),
    ("pages/4_Compare.py", N_("Compare"), "verdict"),
)
_ICONS: dict[Standing, str] = {
    "open": ":material/radio_button_unchecked:",
    "running": ":material/hourglass_top:",
    "done": ":material/check_circle:",
    "stopped": ":material/stop_circle:",
    "failed": ":material/error:",
}
_STANDINGS: dict[tuple[Step, Standing], str] = {
    ("built", "open"): N_("no dataset yet"),
    ("built", "running"): N_("being built"),
    ("built", "done"): N_("built"),
    ("built", "stopped"): N_("the build was stopped"),
    ("built", "failed"): N_("the build failed"),
    ("trained", "open"): N_("not trained yet"),
    ("trained", "running"): N_("training"),
    ("trained", "done"): N_("trained"),
    ("trained", "stopped"): N_("the training was stopped"),
    ("trained", "failed"): N_("the training failed"),
    ("merged", "open"): N_("not merged yet"),
    ("merged", "running"): N_("being merged"),
    ("merged", "done"): N_("merged"),
    ("merged", "stopped"): N_("the merge was stopped"),
    ("merged", "failed"): N_("the merge failed"),
    ("verdict", "open"): N_("not scored yet"),
    ("verdict", "running"): N_("being scored"),
    ("verdict", "done"): N_("scored"),
    ("verdict", "stopped"): N_("the scoring was stopped"),
    ("verdict", "failed"): N_("the scoring failed"),
}


def draw() -> None:
    """Called once a run of the app, within ``st.sidebar``."""
    _links()
    switch()


def _links() -> None:
    seen = current.seen()
    busy = bool(seen.running)
    st.page_link(HOME, label=t("Start"), icon=":material/home:", query_params=_address())
    _switcher(seen)
    st.fragment(_state, run_every=_BUSY if busy else _IDLE)()


def _address() -> dict[str, str]:
    project = current.current()
    return {"persona": project.key} if project else {}


def _switcher(seen: Overview) -> None:
    """The current persona, the others, and the way to a new one."""
    keys = [p.key for p in seen.projects]
    titles = {p.key: p.title for p in seen.projects}
    here = current.current()
    if here is not None:
        # The key holds the choice: a select box that was drawn before would keep its own.
        chosen = st.selectbox(
            t("Persona"),
            keys,
            index=keys.index(here.key),
            format_func=lambda key: titles.get(key, key),
            key=f"persona_switch_{here.key}_{len(keys)}",
        )
        if chosen != here.key:
            current.choose(persona=chosen)
            st.rerun()
    if st.button(
        t("New persona"), icon=":material/person_add:", type="tertiary", key="persona_new"
    ):
        st.switch_page(HOME, query_params={"new": "1"})


def _state() -> None:
    """The four steps and what runs; renews itself."""
    seen, project = current.seen(), current.current()
    for page, title, step in _PAGES:
        icon, about = _step(project, step)
        st.page_link(
            page,
            label=f"{t(title)} · {about}" if about else t(title),
            icon=icon,
            query_params=_address(),
        )
    for run in seen.running:
        _running(run, seen)
    st.set_page_config(page_title=running.title(seen))


def _step(project: Project | None, step: Step) -> tuple[str, str]:
    if project is None:
        return _ICONS["open"], ""
    now = project.step(step)
    if now.verdict:
        return _ICONS["done"], verdict(now.verdict)
    return _ICONS[now.standing], t(_STANDINGS[step, now.standing])


def standing_in_words(project: Project) -> list[str]:
    """A line for each step, with its icon."""
    lines = []
    for _, title, step in _PAGES:
        icon, about = _step(project, step)
        lines.append(f"{icon} {t(title)} · {about}")
    return lines


def _running(run: Summary, seen: Overview) -> None:
    """A bar for a run; what a run of the whole pipeline does now is said by its own bar."""
    if running.is_stage(run, seen):
        return
    progress = run.progress
    share = min(1.0, progress.done / progress.total) if progress.total else 0.0
    st.progress(share, text=literal(running.in_words(run)))
