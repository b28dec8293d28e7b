"""What every page needs before it draws. Calling it twice is harmless."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from core import paths

#: A file of ours: for a Material icon here the browser would ask a font server on the internet.
_ICON = Path(__file__).with_name("icon.svg")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def bootstrap() -> None:
    """Page settings, the workspace folders, and a refusal to serve strangers.

    A page that is opened by its own address runs without streamlit_app.py having drawn, so this
    relies on nothing that another page did.
    """
    st.set_page_config(page_title="Persona Workbench", page_icon=str(_ICON), layout="wide")
    for folder in (paths.datasets_dir(), paths.runs_dir(), paths.chats_dir(), paths.cache_dir()):
        folder.mkdir(parents=True, exist_ok=True)
    address = st.get_option("server.address") or ""
    if address not in _LOOPBACK and os.environ.get("PERSONA_ALLOW_REMOTE") != "1":
        st.error(
            f"The server listens on {address or 'every address'}. Anyone who reaches it could run "
            "jobs on this machine, so nothing is shown. Start it with `make run` (127.0.0.1) and "
            "use `ssh -L 8501:127.0.0.1:8501`, or set PERSONA_ALLOW_REMOTE=1 behind a proxy that "
            "asks for a login.",
            icon=":material/lock:",
        )
        st.stop()
