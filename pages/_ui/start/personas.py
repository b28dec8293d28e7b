"""Every persona of the workspace, and folders from elsewhere."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core.chat.render import literal
from core.pipeline import opening
from core.pipeline.projects import Project
from pages._ui.shell import current
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import moment, t, tn
from pages._ui.shell.sidebar import standing_in_words

_SHOWN = 12


def draw() -> None:
    """The list, newest first; nothing in an empty workspace."""
    projects = current.seen().projects
    if projects:
        st.subheader(t("Personas"))
        _list(list(projects))


def open_folder() -> None:
    """The way to what was made elsewhere."""
    with st.expander(t("Open a folder"), icon=":material/folder_open:"):
        _folder()


def _list(projects: list[Project]) -> None:
    wanted = ""
    if len(projects) > _SHOWN:
        wanted = st.text_input(t("Find"), key="start_find", icon=":material/search:", width=320)
    found = [p for p in projects if wanted.casefold() in f"{p.title} {p.identity.maker}".casefold()]
    with st.container(horizontal=True):
        for project in found[:_SHOWN]:
            with st.container(border=True, width=300):
                _card(project)
    if len(found) > _SHOWN:
        st.caption(t("{n} more; type a name to find one.", n=len(found) - _SHOWN))


def _card(project: Project) -> None:
    st.markdown(f"**{literal(project.title)}**")
    about = [literal(project.identity.maker)] if project.identity.maker else []
    runs = len(project.of("train"))
    about += [tn("{n} run", "{n} runs", runs)] if runs else []
    st.caption(" · ".join([*about, moment(project.touched)]))
    st.markdown("  \n".join(standing_in_words(project)))
    if st.button(t("Open"), key=f"start_open_{project.key}", icon=":material/arrow_forward:"):
        current.open_project(project)


def _folder() -> None:
    st.caption(
        t("A merged model from another place, or what the command line's tune made.")
    )  # fmt: skip
    place = st.text_input(t("Folder"), key="start_folder", placeholder="/home/me/tuned/luna/merged")
    if st.button(t("Open"), key="start_open_folder", disabled=not place.strip()):
        with errors_shown():
            opened = opening.open_folder(Path(place.strip()))
            if opened.kind == "model":
                st.switch_page(current.COMPARE, query_params={"folder": str(opened.folder)})
            current.open_project(current.seen().owner_of(run=opened.run))
