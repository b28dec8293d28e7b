"""Tabs that stand in the address: a link opens them, and the Back button goes through them."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.chat.render import code
from pages._ui.shell.language import t


def tabs(
    key: str, titles: Mapping[str, tuple[str, str]], param: str = "tab"
) -> tuple[str, DeltaGenerator]:
    """Draw tabs, of which only the open one's content is to be drawn.

    Streamlit's own binding to the address replaces the entry in the browser's history, so that
    Back would leave the page; here the address is written as a new entry, and it decides.

    Args:
        titles: words (marked with ``N_``) and icon by the name in the address.
        param: the name of the parameter; two sets of tabs on a page need two.

    Returns:
        Name of the open tab, and its box. An address that names no tab says so and opens the first.
    """
    labels = {name: f"{icon} {t(words)}" for name, (words, icon) in titles.items()}
    asked = st.query_params.get(param, "")
    if asked and asked not in labels:
        unknown = t("There is no tab {name} here.", name=code(asked[:40]))
        st.warning(unknown, icon=":material/search_off:")
    opened = asked if asked in labels else next(iter(labels))
    st.session_state[key] = labels[opened]
    boxes = st.tabs(list(labels.values()), key=key, on_change=_follow, args=(key, labels, param))
    return opened, dict(zip(labels, boxes, strict=True))[opened]


def _follow(key: str, labels: Mapping[str, str], param: str) -> None:
    chosen = next(name for name, label in labels.items() if label == st.session_state[key])
    if chosen == next(iter(labels)):
        st.query_params.pop(param, None)
    else:
        st.query_params[param] = chosen
