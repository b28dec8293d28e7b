"""What every page needs before it draws. Calling it twice is harmless."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st
from streamlit import net_util
from streamlit.runtime.pages_manager import PagesManager

from core import paths
from core.chat.render import code, literal
from core.errors import UserError
from pages._ui.shell.current import seen
from pages._ui.shell.running import APP, title

#: A file of ours: for a Material icon here the browser would ask a font server on the internet.
_ICON = Path(__file__).with_name("icon.svg")
#: Set by streamlit_app.py in every session that it has drawn.
THROUGH_THE_APP = "through_the_app"
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def bootstrap() -> None:
    """Page settings, the workspace folders, and a refusal to serve strangers."""
    _through_the_app()
    st.set_page_config(page_title=APP, page_icon=str(_ICON), layout="wide")
    try:
        for place in (paths.datasets_dir, paths.runs_dir, paths.chats_dir, paths.cache_dir):
            place().mkdir(parents=True, exist_ok=True)
    except UserError as error:
        st.error(literal(str(error)), icon=":material/hard_drive:")
        st.stop()
    except OSError as error:
        st.error(
            f"The workspace {code(paths.home())} cannot be used: {literal(error.strerror)}. Free "
            "disk space, or set PERSONA_HOME to a folder that this user may write.",
            icon=":material/hard_drive:",
        )
        st.stop()
    refusal = _open_to_strangers()
    if refusal and os.environ.get("PERSONA_ALLOW_REMOTE") != "1":
        st.error(refusal, icon=":material/lock:")
        st.stop()
    st.set_page_config(page_title=title(seen()))


def keep_address() -> None:
    """Streamlit asks a server on the internet for our address when a foreign origin knocks."""
    net_util.get_external_ip = lambda: None


def _open_to_strangers() -> str:
    """Why this server must show nothing ('' if it may)."""
    address = st.get_option("server.address") or ""
    why = ""
    if address not in _LOOPBACK:
        why = f"The server listens on {literal(address or 'every address')}."
    elif not (st.get_option("server.enableCORS") and st.get_option("server.enableXsrfProtection")):
        why = "The checks of where a request comes from (CORS, XSRF) are switched off."
    if not why:
        return ""
    return (
        f"{why} Anyone who reaches it could run jobs on this machine, so nothing is shown. Start "
        "it with `make run` (127.0.0.1) and use `ssh -L 8501:127.0.0.1:8501`, or set "
        "PERSONA_ALLOW_REMOTE=1 behind a proxy that asks for a login."
    )


def _through_the_app() -> None:
    """Make a page that was opened by its own address run under streamlit_app.py.

    Streamlit takes a folder called pages for the navigation until st.navigation has been called
    once in the server's life. A bookmark that is the first thing opened after a start would show
    a menu of file names, with an entry "streamlit app". Streamlit has no setting for this. A
    session that has been through the app stays as it is: a rerun here would lose a click (AppTest
    forgets the navigation at every run).
    """
    if PagesManager.uses_pages_directory and THROUGH_THE_APP not in st.session_state:
        PagesManager.uses_pages_directory = False
        st.rerun()
