"""Train: steer, start, watch, stop and resume XTuner QLoRA runs."""

import streamlit as st

from pages._ui.shell.bootstrap import bootstrap
from pages._ui.shell.common import device_line, errors_shown
from pages._ui.shell.language import t
from pages._ui.train import (
    history as train_history,
)
from pages._ui.train import (
    new as train_new,
)
from pages._ui.train import (
    state as train_state,
)
from pages._ui.train import (
    watch as train_watch,
)

bootstrap()
st.title(t("Train"))
device_line()
view = train_state.choose_view()
with errors_shown():
    if view == train_state.NEW:
        train_new.draw()
    elif view == train_state.WATCH:
        train_watch.draw()
    else:
        train_history.draw()
