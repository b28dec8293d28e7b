"""Compare: talk to the model before and after, side by side."""

import streamlit as st

from pages._ui import compare_chat
from pages._ui.bootstrap import bootstrap
from pages._ui.common import device_line

bootstrap()
st.title("Compare")
device_line()
compare_chat.draw()
