"""Own packs: duplicate, edit the text, delete."""

from __future__ import annotations

from typing import Any

import streamlit as st

from core.chat.render import code
from core.data import drafts
from core.persona import packs
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import t


def duplicate(form: dict[str, Any], pack: str) -> None:
    """Name field and button of the Duplicate popover."""
    name = st.text_input(t("Name of the copy"), f"my-{pack}"[:64], key=f"copy-{pack}")
    if st.button(t("Make the copy"), type="primary", key=f"copy-go-{pack}"):
        with errors_shown():
            packs.duplicate(pack, name)
            form["pack"] = name
            form.setdefault("slots", {})[name] = dict(form.get("slots", {}).get(pack, {}))
            drafts.save_form(form)
            st.rerun()


def editor(pack: str) -> None:
    """The pack's YAML: read-only for a shipped pack, editable for an own one."""
    path = packs.find(pack)
    own = packs.is_own(path)
    with st.expander(t("Wordings and replies (YAML)"), icon=":material/code:"):
        text = packs.text_of(pack)
        if not own:
            st.caption(t("A shipped pack cannot be changed. Duplicate it to edit a copy."))
            st.code(text, language="yaml", height=400)
            return
        edited = st.text_area(
            t("Pack text"), text, height=400, key=f"yaml-{pack}", label_visibility="collapsed"
        )
        save, remove = st.columns(2)
        if save.button(t("Check and save"), type="primary", disabled=edited == text):
            with errors_shown():
                packs.write(pack, edited)
                st.toast(t("Pack saved"))
                st.rerun()
        with remove.popover(t("Delete pack")):
            st.write(t("Delete {name} for good?", name=code(pack)))
            if st.button(t("Delete"), key=f"pack-delete-{pack}"):
                packs.delete(pack)
                st.rerun()
