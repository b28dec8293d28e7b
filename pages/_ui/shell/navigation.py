"""The four pages, and the addresses under which people type them."""

from __future__ import annotations

import streamlit as st
from streamlit.navigation.page import StreamlitPage


def pages_and_addresses() -> list[StreamlitPage]:
    """Four pages in the menu; hidden ones that lead to them from other spellings of the address.

    Streamlit gives the first page the root address only, and tells capitals apart: without these,
    ``/Dataset`` and ``/train`` are "Page not found".
    """
    shown = [
        # The address of the first page is the root; what stands here would be taken all the same.
        st.Page(
            "pages/1_Dataset.py",
            title="Dataset",
            icon=":material/edit_note:",
            url_path="start",
            default=True,
        ),
        st.Page("pages/2_Train.py", title="Train", icon=":material/model_training:"),
        st.Page("pages/3_Merge.py", title="Merge", icon=":material/merge:"),
        st.Page("pages/4_Compare.py", title="Compare", icon=":material/compare:"),
    ]
    spellings = [(shown[0], "Dataset")] + [(page, page.title.lower()) for page in shown]
    return shown + [_leads_to(page, path) for page, path in spellings]


def _leads_to(page: StreamlitPage, path: str) -> StreamlitPage:
    """A hidden page at ``path`` that opens ``page`` with the same query."""

    def go() -> None:
        st.switch_page(page, query_params=dict(st.query_params))

    return st.Page(go, title=page.title, url_path=path, visibility="hidden")
