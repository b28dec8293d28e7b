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
from pages._ui.shell.language import t
from pages._ui.shell.running import APP, title

#: A file of ours: for a Material icon here the browser would ask a font server on the internet.
_ICON = Path(__file__).with_name("icon.svg")
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def bootstrap() -> None:
    """Page settings, the workspace folders, and a refusal to serve strangers."""
    st.set_page_config(page_title=APP, page_icon=str(_ICON), layout="wide")
    try:
        for place in (paths.datasets_dir, paths.runs_dir, paths.chats_dir, paths.cache_dir):
            place().mkdir(parents=True, exist_ok=True)
    except UserError as error:
        st.error(literal(str(error)), icon=":material/hard_drive:")
        st.stop()
    except OSError as error:
        st.error(
            t(
                "The workspace {folder} cannot be used: {reason}. Free disk space, or set "
                "PERSONA_HOME to a folder that this user may write.",
                folder=code(paths.home()),
                reason=literal(error.strerror),
            ),
            icon=":material/hard_drive:",
        )
        st.stop()
    refusal = _open_to_strangers()
    if refusal and os.environ.get("PERSONA_ALLOW_REMOTE") != "1":
        st.error(refusal, icon=":material/lock:")
        st.stop()
    st.set_page_config(page_title=title(seen()))


def before_the_first_visit() -> None:
    """What Streamlit has no setting for, set when the server starts.

    It asks a server on the internet for our address when a foreign origin knocks. And it takes a
    folder called pages for the navigation until st.navigation has been called once in the
    server's life: an address that is the first to be opened would find a menu of file names, or
    "Page not found" if it is written as only our navigation knows it (``/compare``).
    """
    net_util.get_external_ip = lambda: None
    PagesManager.uses_pages_directory = False


def _open_to_strangers() -> str:
    """Why this server must show nothing ('' if it may)."""
    address = st.get_option("server.address") or ""
    why = ""
    if address not in _LOOPBACK:
        listens = literal(address) if address else t("every address")
        why = t("The server listens on {address}.", address=listens)
    elif not (st.get_option("server.enableCORS") and st.get_option("server.enableXsrfProtection")):
        why = t("The checks of where a request comes from (CORS, XSRF) are switched off.")
    if not why:
        return ""
    return t(
        "{why} Anyone who reaches it could run jobs on this machine, so nothing is shown. Start "
        "it with `make run` (127.0.0.1) and use `ssh -L 8501:127.0.0.1:8501`, or set "
        "PERSONA_ALLOW_REMOTE=1 behind a proxy that asks for a login.",
        why=why,
    )
