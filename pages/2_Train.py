"""Train: steer, start, watch, stop and resume XTuner QLoRA runs."""

import streamlit as st

from pages._ui import train_history, train_new, train_state, train_watch
from pages._ui.bootstrap import bootstrap
from pages._ui.common import device_line, errors_shown

bootstrap()
st.title("Train")
device_line()
view = train_state.choose_view()
with errors_shown():
    if view == train_state.NEW:
        train_new.draw()
    elif view == train_state.WATCH:
        train_watch.draw()
    else:
        train_history.draw()
