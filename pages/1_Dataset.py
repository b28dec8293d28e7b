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
from pages._ui.shell.language import t

bootstrap()
st.title(t("Dataset"))
device_line()
SECTIONS = {
    "persona": (f":material/person: {t('Persona')}", dataset_persona.draw),
    "rows": (f":material/table_rows: {t('Rows')}", dataset_rows.draw),
    "report": (f":material/monitoring: {t('Report')}", dataset_report.draw),
    "simulate": (f":material/forum: {t('Simulate')}", dataset_simulate.draw),
    "files": (f":material/folder_open: {t('Files')}", dataset_files.draw),
}
chosen = section({key: label for key, (label, _) in SECTIONS.items()})
if chosen != "persona":  # which shows it where its button is
    job_panel()
SECTIONS[chosen][1]()
