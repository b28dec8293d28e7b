"""Merge: a checkpoint to an adapter, a merged model, a proof, and what leaves the workbench."""

import streamlit as st

from pages._ui import merge_new, merge_result, merge_state
from pages._ui.bootstrap import bootstrap
from pages._ui.common import device_line, errors_shown

bootstrap()
st.title("Merge")
device_line()
view = merge_state.choose_view()
with errors_shown():
    if view == merge_state.NEW:
        merge_new.draw()
    else:
        merge_result.draw()
