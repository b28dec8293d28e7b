"""Everything that Persona Workbench decides and computes; no Streamlit in here."""

import os

# By default OpenMP threads spin for milliseconds at every barrier. Beside any other program that
# takes cores from the thread they wait for: training steps and replies then took 10 to 100 times
# longer. Read by the OpenMP runtime when torch is first imported, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
