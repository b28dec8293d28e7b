"""What stands in the address: a link opens it, a reload keeps it, and Back goes through it."""

from __future__ import annotations

from collections.abc import Mapping

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from core.chat.render import code
from pages._ui.shell.language import t


def write(**changes: str | None) -> None:
    """Change the address, or take out what is None, as one entry in the browser's history.

    Each assignment to ``st.query_params`` would be an entry of its own, and Back a press for each.
    """
    now = st.query_params.to_dict()
    after = {key: value for key, value in {**now, **changes}.items() if value is not None}
    if after != now:
        st.query_params.from_dict(after)


def view(key: str, titles: Mapping[str, tuple[str, str]], default: str) -> str:
    """The switch at the top of a page, kept as ``view`` in the address.

    Args:
        titles: words (marked with ``N_``) and icon by the name in the address.
        default: what opens without one, as found when the page is opened: a run that begins or
            ends meanwhile must not turn the page under its reader.

    Returns:
        The name of the open part; the default, and a warning, if the address names none.
    """
    asked = st.query_params.get("view", "")
    if asked and asked not in titles:
        unknown = t("This page has no part {name}.", name=code(asked[:40]))
        st.warning(unknown, icon=":material/search_off:")
    first = f"{key}_first"
    if key not in st.session_state or first not in st.session_state:
        st.session_state[first] = default
    opened = asked if asked in titles else str(st.session_state[first])
    st.session_state[key] = opened
    st.segmented_control(
        t("Part of the page"),
        list(titles),
        format_func=lambda name: f"{titles[name][1]} {t(titles[name][0])}",
        key=key,
        required=True,
        label_visibility="collapsed",
        on_change=lambda: write(view=st.session_state[key]),
    )
    return opened


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
    write(**{param: None if chosen == next(iter(labels)) else chosen})
