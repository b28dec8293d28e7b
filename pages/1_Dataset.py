"""Dataset: a persona from a pack, its conversations, what is wrong with them, files in and out."""

import streamlit as st

from pages._ui.dataset import (
    files as dataset_files,
)
from pages._ui.dataset import (
    persona as dataset_persona,
)
from pages._ui.dataset import (
    report as dataset_report,
)
from pages._ui.dataset import (
    rows as dataset_rows,
)
from pages._ui.dataset import (
    simulate as dataset_simulate,
)
from pages._ui.dataset.state import job_panel, section
from pages._ui.shell.bootstrap import bootstrap
from pages._ui.shell.common import device_line

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
