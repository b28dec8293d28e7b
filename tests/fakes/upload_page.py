"""A page of the import's upload field, which says how many bytes of uploads its window holds."""

from __future__ import annotations


def importing() -> None:
    """For ``AppTest.from_function``; the bytes are ``session_state["held"]``."""
    import streamlit as st
    from streamlit.runtime.scriptrunner import get_script_run_ctx

    from pages._ui.dataset.files import _import

    _import("")
    context = get_script_run_ctx()
    assert context is not None
    held = context.uploaded_file_mgr.file_storage.get(context.session_id, {})
    st.session_state["held"] = sum(len(file.data) for file in held.values())
