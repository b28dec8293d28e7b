"""Compare: talk to the model before and after, side by side."""

import streamlit as st

from pages._ui.compare import (
    batch,
    chat,
    columns,
    controls,
    icons,
    scorecard_tab,
    state,
    transcripts,
)
from pages._ui.compare.state import Setup
from pages._ui.shell.address import tabs
from pages._ui.shell.bootstrap import bootstrap
from pages._ui.shell.common import device_line
from pages._ui.shell.language import N_, t

bootstrap()
st.title(t("Compare"))
device_line()
icons.style()
session = state.session()
fresh = state.changed_elsewhere(session)
# In containers of their own: a notice that comes or goes in them must not make new tabs below,
# which would throw the reader back to the first one.
with st.container():
    chosen = columns.draw(session, fresh)
with st.container():
    system, settings = controls.draw(session, fresh)
setup = Setup(chosen, system, settings)
state.remember(session)
if session is not None and chosen and session.live is None:
    state.keep(setup)
opened, box = tabs(
    "compare_tab",
    {
        "chat": (N_("Chat"), ":material/forum:"),
        "batch": (N_("Batch"), ":material/playlist_play:"),
        "scorecard": (N_("Scorecard"), ":material/fact_check:"),
        "transcripts": (N_("Transcripts"), ":material/history:"),
    },
)
if opened == "chat":
    chat.draw(setup, box)
else:
    with box:
        {
            "batch": lambda: batch.draw(setup),
            "scorecard": scorecard_tab.draw,
            "transcripts": transcripts.draw,
        }[opened]()
