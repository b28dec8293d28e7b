"""Pictures of a dataset: what is in it."""

from __future__ import annotations

import streamlit as st

from core.data import store
from pages._ui.common import errors_shown
from pages._ui.dataset_state import choose_dataset


def draw() -> None:
    """The Report part."""
    name = choose_dataset()
    if name:
        with errors_shown():
            index = store.index(store.dataset(name).train)
            st.metric("Conversations", f"{len(index.ids):,}")
            st.bar_chart(
                [
                    {"intent": i or "(none)", "kind": k, "rows": 1}
                    for i, k in zip(index.intents, index.kinds, strict=True)
                ],
                x="intent",
                y="rows",
                color="kind",
                horizontal=True,
            )
