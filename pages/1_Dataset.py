"""Dataset: a persona from a pack, its conversations, what is wrong with them, files in and out."""

import streamlit as st

from pages._ui.dataset import files, persona, report, rows, simulate
from pages._ui.dataset.state import job_panel
from pages._ui.shell import address
from pages._ui.shell.bootstrap import bootstrap
from pages._ui.shell.common import device_line
from pages._ui.shell.language import N_, t

#: Title and contents by the name in the address.
PARTS = {
    "persona": (N_("Persona"), ":material/person:", persona.draw),
    "rows": (N_("Rows"), ":material/table_rows:", rows.draw),
    "report": (N_("Report"), ":material/monitoring:", report.draw),
    "simulate": (N_("Simulate"), ":material/forum:", simulate.draw),
    "files": (N_("Files"), ":material/folder_open:", files.draw),
}

bootstrap()
st.title(t("Dataset"))
device_line()
chosen = address.view("dataset_view", {k: v[:2] for k, v in PARTS.items()}, "persona")
if chosen != "persona":  # which shows it where its button is
    job_panel()
PARTS[chosen][2]()
