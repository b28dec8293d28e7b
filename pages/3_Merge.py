"""Merge: a checkpoint to an adapter, a merged model, a proof, and what leaves the workbench."""

import streamlit as st

from pages._ui.merge import new as merge_new
from pages._ui.merge import result as merge_result
from pages._ui.merge import state as merge_state
from pages._ui.shell.bootstrap import bootstrap
from pages._ui.shell.common import device_line, errors_shown
from pages._ui.shell.language import t

bootstrap()
st.title(t("Merge"))
device_line()
view = merge_state.choose_view()
with errors_shown():
    if view == merge_state.NEW:
        merge_new.draw()
    else:
        merge_result.draw()
