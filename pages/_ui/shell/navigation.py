"""The five pages, and the addresses under which people type them."""

from __future__ import annotations

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from pages._ui.shell.language import t


def pages_and_addresses() -> list[StreamlitPage]:
    """The pages; hidden ones that lead to them from other spellings of the address.

    Streamlit gives the first page the root address only, and tells capitals apart: without these,
    ``/Start`` and ``/train`` are "Page not found".
    """
    start = st.Page("pages/0_Start.py", title=t("Start"), url_path="home", default=True)
    steps = {
        name: st.Page(f"pages/{number}_{name}.py", title=title, url_path=name)
        for number, (name, title) in enumerate(
            (
                ("Dataset", t("Dataset")),
                ("Train", t("Train")),
                ("Merge", t("Merge")),
                ("Compare", t("Compare")),
            ),
            start=1,
        )
    }
    spellings = [(start, "Start"), (start, "start")]
    spellings += [(page, name.lower()) for name, page in steps.items()]
    return [start, *steps.values(), *(_leads_to(page, path) for page, path in spellings)]


def _leads_to(page: StreamlitPage, path: str) -> StreamlitPage:
    """A hidden page at ``path`` that opens ``page`` with the same query."""

    def go() -> None:
        st.switch_page(page, query_params=dict(st.query_params))

    return st.Page(go, title=page.title, url_path=path, visibility="hidden")
