"""Persona Workbench. Start it with ``make run`` or ``streamlit run streamlit_app.py``.

Streamlit imports this file once as the server's application, whose responses get our headers, and
runs it as a script (``__main__``) at every look at a page.
"""

import streamlit as st
from starlette.middleware import Middleware

from pages._ui.shell import sidebar
from pages._ui.shell.bootstrap import before_the_first_visit, bootstrap
from pages._ui.shell.common import errors_shown
from pages._ui.shell.headers import SafeHeaders
from pages._ui.shell.navigation import pages_and_addresses


def draw() -> None:
    """The page that is asked for, and what stands beside every page."""
    bootstrap()  # before navigation, whose icon the browser would fetch from the internet
    with errors_shown():  # a file that the disk refuses is a message, not the end of the page
        page = st.navigation(pages_and_addresses(), position="hidden")
        with st.sidebar:
            sidebar.draw()
        page.run()


if __name__ == "__main__":
    draw()
else:
    before_the_first_visit()
    app = st.App(__file__, middleware=[Middleware(SafeHeaders)])
