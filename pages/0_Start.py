"""Start: what this is, a persona in one press, and all that have been made."""

from pages._ui.shell.bootstrap import bootstrap
from pages._ui.shell.common import errors_shown
from pages._ui.start import intro, make, personas

bootstrap()
intro.title()
with errors_shown():
    make.draw()
    personas.draw()
    intro.draw()
    personas.open_folder()
