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
from pages._ui.shell import address, current, words
from pages._ui.shell.language import N_

NEW, WATCH, HISTORY = "new", "watch", "history"
VIEWS = {
    NEW: (N_("New run"), ":material/add:"),
    WATCH: (N_("Watch"), ":material/show_chart:"),
    HISTORY: (N_("History"), ":material/history:"),
}

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


def run_label(summary: Summary) -> str:
    """A run as a person calls it, with how it ended.

    Without a state that will change: the browser shows the chosen line as it was when it was
    chosen, so a run that has ended would go on being called running.
    """
    end = "" if summary.state in ACTIVE else f" · {words.ending(summary.state).lower()}"
    name = current.name_of(summary.id)
    return (summary.name if name == summary.id else name) + end  # one that was just deleted


def take_over(run: RunPaths) -> None:
    """Show the form of a new run with the settings of this one."""
    settings = read_spec(run).params
    st.session_state["train_take_over"] = settings
    st.session_state["train_model"] = settings.get("model", "bundled")
    dataset = Path(settings.get("dataset", ""))
    ours = dataset.parent == paths.datasets_dir()
    current.choose(view=NEW, **({"dataset": dataset.name} if ours else {}))
    st.session_state["train_stock"] = settings.get("stock_config", "")
    st.session_state["train_parent"] = run.root.name


def choose_view() -> str:
    """The switch at the top: on Watch if there is something to watch and no dataset is sent."""
    asked, here = st.query_params, current.current()
    alive = any(s.state in ACTIVE for s in training_runs())
    trained = here is not None and bool(here.of("train"))
    watch = "run" in asked or ("dataset" not in asked and (alive or trained))
    return address.view("train_view", VIEWS, WATCH if watch else NEW)


def paths_of(runs: list[Summary], run_id: str) -> RunPaths:
    """The folder of a listed run."""
    for summary in runs:
        if summary.id == run_id:
            return RunPaths(summary.root)
    raise UserError(f"run {run_id} is gone", fix="choose another run")
