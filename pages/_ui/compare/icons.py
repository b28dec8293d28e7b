"""Buttons that show an icon alone; their words are the tooltip and what a screen reader says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

#: The words stay in the button, out of sight: Streamlit gives a button no other accessible name.
#: Five buttons and "2 / 2" stand in one row in a column of 13rem; a finger gets larger ones.
#: Columns go below each other where they would be narrower than that.
_STYLE = """<style>
[class*="st-key-icon_"] button { min-width: 1.75rem; min-height: 1.75rem; padding: .125rem }
[class*="st-key-icon_"] button [data-testid="stMarkdownContainer"] {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap }
[class*="st-key-icon_"] [data-testid="stPopoverButton"] div[aria-hidden="true"] { display: none }
@media (pointer: coarse) { [class*="st-key-icon_"] button { min-width: 2.5rem } }
[class*="st-key-beside_"] { flex-wrap: nowrap }
[class*="st-key-columns_"] [data-testid="stColumn"] { min-width: 13rem }
</style>"""


def style() -> None:
    """Once a page, before the first button."""
    st.html(_STYLE)


def button(
    words: str,
    icon: str,
    key: str,
    on_click: Callable[..., None],
    args: tuple[Any, ...] = (),
    *,
    disabled: bool = False,
    more: str = "",
) -> None:
    """A button of one icon; its widget's key is ``icon_`` and ``key``.

    Args:
        more: what the tooltip says beyond the words.
    """
    st.button(
        words, icon=icon, key=f"icon_{key}", type="tertiary", on_click=on_click, args=args,
        disabled=disabled, help="\n\n".join([words, more]) if more else words,
    )  # fmt: skip
