"""What is typed into a form stays: a reload ends Streamlit's session, and with it its widgets."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import streamlit as st

from core.data import drafts
from pages._ui.shell.common import errors_shown


def recall(form: str, keys: Mapping[str, Collection[str] | None]) -> None:
    """Once a session, before the widgets are drawn: put in what they held when last seen.

    Args:
        form: which form, a name of a file.
        keys: of the widgets, each with what it can be chosen from; None = any text.
    """
    if st.session_state.get(f"recalled_{form}"):
        return
    st.session_state[f"recalled_{form}"] = True
    kept = drafts.load_form(form)
    for key, choices in keys.items():
        value = kept.get(key)
        if isinstance(value, str) and (choices is None or value in choices):
            st.session_state.setdefault(key, value)


def keep(form: str, keys: Collection[str]) -> None:
    """After the widgets were drawn: remember what they hold."""
    _save(form, {key: st.session_state[key] for key in keys if st.session_state.get(key)})


def forget(form: str, keys: Collection[str]) -> None:
    """What was typed has been used: these are empty when the form is next seen."""
    for key in keys:
        st.session_state.pop(key, None)
    _save(form, {k: v for k, v in drafts.load_form(form).items() if k not in keys})


def _save(form: str, values: dict[str, str]) -> None:
    with errors_shown():  # the page works without; it is only not remembered
        drafts.save_form(values, form)
