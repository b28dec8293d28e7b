"""Dataset: a persona from a pack, its conversations, what is wrong with them, files in and out."""

import streamlit as st

from pages._ui import dataset_files, dataset_persona, dataset_report, dataset_rows, dataset_simulate
from pages._ui.bootstrap import bootstrap
from pages._ui.common import device_line
from pages._ui.dataset_state import job_panel, section

bootstrap()
st.title("Dataset")
device_line()
SECTIONS = {
    "persona": (":material/person: Persona", lambda: dataset_persona.draw(building)),
    "rows": (":material/table_rows: Rows", dataset_rows.draw),
    "report": (":material/monitoring: Report", dataset_report.draw),
    "simulate": (":material/forum: Simulate", dataset_simulate.draw),
    "files": (":material/folder_open: Files", dataset_files.draw),
}
chosen = section({key: label for key, (label, _) in SECTIONS.items()})
building = job_panel()
SECTIONS[chosen][1]()
