"""Persona Workbench. Start it with ``make run`` or ``streamlit run streamlit_app.py``."""

import streamlit as st

from pages._ui.shell.bootstrap import THROUGH_THE_APP, bootstrap

st.session_state[THROUGH_THE_APP] = True
bootstrap()  # before navigation, whose icon the browser would fetch from the internet
st.navigation(
    [
        st.Page("pages/1_Dataset.py", title="Dataset", icon=":material/edit_note:", default=True),
        st.Page("pages/2_Train.py", title="Train", icon=":material/model_training:"),
        st.Page("pages/3_Merge.py", title="Merge", icon=":material/merge:"),
        st.Page("pages/4_Compare.py", title="Compare", icon=":material/compare:"),
    ]
).run()
