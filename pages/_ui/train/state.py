"""What the Train page keeps between looks: which view, which run. Runs themselves are on disk."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core import paths
from core.chat.render import literal
from core.errors import UserError
from core.jobs import api
from core.jobs.spec import read_spec
from core.jobs.state import ACTIVE, State, Summary
from core.paths import RunPaths
from pages._ui.shell import words

NEW, WATCH, HISTORY = "New run", "Watch", "History"
VIEWS = (NEW, WATCH, HISTORY)

_BADGES = {
    State.CREATED: ("gray", ":material/draft:"),
    State.STARTING: ("blue", ":material/hourglass:"),
    State.RUNNING: ("blue", ":material/play_arrow:"),
    State.STOPPING: ("orange", ":material/stop:"),
    State.ORPHANED: ("orange", ":material/link_off:"),
    State.SUCCEEDED: ("green", ":material/check:"),
    State.FAILED: ("red", ":material/error:"),
    State.STOPPED: ("gray", ":material/stop:"),
    State.LOST: ("orange", ":material/help:"),
}


def badge(state: State, reason: str | None = None) -> None:
    """The state as a coloured label."""
    color, icon = _BADGES[state]
    st.badge(literal(words.ending(state, reason)), icon=icon, color=color)  # type: ignore[arg-type]


def training_runs() -> list[Summary]:
    """Runs that this page is about, newest first. ``command`` runs come from the terminal."""
    return [s for s in api.list_runs() if s.kind in ("train", "command", "unknown")]


def go_to(view: str, run: str | None = None) -> None:
    """Show another view at the next rerun; the address keeps the run through a reload."""
    st.session_state["train_goto"] = view
    if run is not None:
        st.query_params["run"] = run
        st.session_state.pop("train_run", None)


def take_over(run: RunPaths) -> None:
    """Show the form of a new run with the settings of this one."""
    settings = read_spec(run).params
    st.session_state["train_take_over"] = settings
    st.session_state["train_model"] = settings.get("model", "bundled")
    dataset = Path(settings.get("dataset", ""))
    if dataset.parent == paths.datasets_dir():
        st.session_state["train_dataset"] = dataset.name
    st.session_state["train_stock"] = settings.get("stock_config", "")
    st.session_state["train_parent"] = run.root.name
    st.session_state["train_goto"] = NEW


def choose_view() -> str:
    """The switch at the top. Opens on Watch if the address names a run or one is alive."""
    wanted = st.session_state.pop("train_goto", None)
    if wanted is None and "train_view" not in st.session_state:
        alive = any(s.state in ACTIVE for s in training_runs())
        wanted = WATCH if alive or "run" in st.query_params else NEW
    if wanted is not None:
        st.session_state["train_view"] = wanted
    view = st.segmented_control(
        "View", VIEWS, key="train_view", required=True, label_visibility="collapsed"
    )
    return view or NEW


def run_in_address(runs: list[Summary]) -> str | None:
    """The run that the address names, if it is there; else one that is alive; else the newest."""
    named = st.query_params.get("run")
    ids = [s.id for s in runs]
    if named in ids:
        return named
    if named is not None:
        st.query_params.pop("run")
        st.toast(f"Run {literal(named[:60])} is gone.", icon=":material/delete:")
    alive = next((s.id for s in runs if s.state in ACTIVE), None)
    return alive or (ids[0] if ids else None)


def paths_of(runs: list[Summary], run_id: str) -> RunPaths:
    """The folder of a listed run."""
    for summary in runs:
        if summary.id == run_id:
            return RunPaths(summary.root)
    raise UserError(f"run {run_id} is gone", fix="choose another run")
