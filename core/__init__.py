"""Persona Workbench: everything the pages and the command line do, without Streamlit."""
