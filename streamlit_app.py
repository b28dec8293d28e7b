"""Persona Workbench. Start it with ``make run`` or ``streamlit run streamlit_app.py``."""

import streamlit as st

from pages._ui.shell.bootstrap import THROUGH_THE_APP, bootstrap
from pages._ui.shell.common import errors_shown
from pages._ui.shell.language import switch
from pages._ui.shell.navigation import pages_and_addresses

st.session_state[THROUGH_THE_APP] = True
bootstrap()  # before navigation, whose icon the browser would fetch from the internet
with errors_shown():  # a file that the disk refuses is a message, not the end of the page
    page = st.navigation(pages_and_addresses())
    with st.sidebar:
        switch()
    page.run()
