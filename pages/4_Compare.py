"""Compare: talk to the model before and after, side by side."""

import streamlit as st

from pages._ui.compare import (
    batch as compare_batch,
)
from pages._ui.compare import (
    chat as compare_chat,
)
from pages._ui.compare import (
    columns as compare_columns,
)
from pages._ui.compare import (
    controls as compare_controls,
)
from pages._ui.compare import (
    scorecard_tab as compare_scorecard,
)
from pages._ui.compare import (
    state as compare_state,
)
from pages._ui.compare import (
    transcripts as compare_transcripts,
)
from pages._ui.shell.bootstrap import bootstrap
from pages._ui.shell.common import device_line

bootstrap()
st.title("Compare")
device_line()
session = compare_state.session()
# In containers of their own: a notice that comes or goes in them must not make new tabs below,
# which would throw the reader back to the first one.
with st.container():
    sides = compare_columns.draw(session)
with st.container():
    settings, system = compare_controls.draw(session)
chat, batch, scorecard, history = st.tabs(
    [
        ":material/forum: Chat",
        ":material/playlist_play: Batch",
        ":material/fact_check: Scorecard",
        ":material/history: Transcripts",
    ]
)
with batch:
    compare_batch.draw(sides, settings, system)
with scorecard:
    compare_scorecard.draw()
with history:
    compare_transcripts.draw()
with chat:  # last: it does not return while a reply streams
    compare_chat.draw(sides, settings, system)
