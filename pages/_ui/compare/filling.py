"""What stands in the pickers at first: the conversation's, what the address names, the usual."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from core import paths
from core.chat.columns import Column
from core.chat.session import ChatSession
from core.errors import UserError
from core.evaluation import choice
from core.paths import RunPaths
from pages._ui.compare import state
from pages._ui.merge.state import merged_folder
from pages._ui.shell import current

#: Choices of a picker beside the models that were found.
SERVER, FOLDER = "server", "folder"
#: What the address asked for when the pickers were last filled from it.
_SENT_FOR = "compare_sent_for"


def model_id(column: Column) -> str:
    """Stable from one redraw to the next, whatever the model is called."""
    return f"{column.kind}|{column.model}|{column.adapter or ''}"


def run_of(column: Column) -> str:
    """Id of the run that made a model; '' if none here did."""
    made = Path(column.adapter or column.model)
    try:
        return made.relative_to(paths.runs_dir()).parts[0]
    except (ValueError, IndexError):
        return ""


def own_first(models: list[Column]) -> list[Column]:
    """The current persona's models before those of others, the bases before both."""
    project = current.current()
    ids = {run.id for run in project.runs} if project else set()
    bases = [m for m in models if not run_of(m)]
    made = [m for m in models if run_of(m)]
    return [*bases, *sorted(made, key=lambda m: run_of(m) not in ids)]


def fill(session: ChatSession | None, fresh: bool, models: dict[str, Column]) -> None:
    """Put the conversation's columns, or at first the usual ones, into the pickers."""
    if session is not None and fresh:
        _put(session.transcript.columns, models)
        return
    sent_for = state.sent_for() if session is None else ()
    sent_here = sent_for and sent_for != st.session_state.get(_SENT_FOR)
    if "compare_count" in st.session_state and not sent_here:
        return
    st.session_state[_SENT_FOR] = sent_for
    _put(_usual(models), models)
    if folder := st.query_params.get("folder", "") if sent_for else "":
        st.session_state["compare_count"] = 2
        st.session_state["compare_model_b"] = FOLDER
        st.session_state["compare_folder_b"] = folder


def _put(columns: list[Column], models: dict[str, Column]) -> None:
    st.session_state["compare_count"] = len(columns)
    for column in columns:
        key, place = model_id(column), column.id
        if column.kind == "endpoint":
            key = SERVER
            st.session_state[f"compare_url_{place}"] = column.base_url
            st.session_state[f"compare_served_{place}"] = column.model
            st.session_state[f"compare_key_{place}"] = column.key_env
        elif key not in models:
            key = FOLDER
            st.session_state[f"compare_folder_{place}"] = column.adapter or column.model
        st.session_state[f"compare_model_{place}"] = key
        if column.kind == "prompted":
            st.session_state[f"compare_system_{place}"] = column.system


def _usual(models: dict[str, Column]) -> list[Column]:
    """The base, and beside it the newest merged model of the persona, else what comes nearest."""
    hint = state.persona()
    project = current.current()
    ids = {run.id for run in project.runs} if project else set()
    merges = [*_elsewhere(), *(m for m in models.values() if m.kind == "merged")]
    wanted = current.chosen("merge", [run_of(m) or st.query_params["merge"] for m in merges])
    tuned = [m for m in merges if (run_of(m) or wanted) == wanted]
    if not tuned:
        adapters = [m for m in models.values() if m.kind == "adapter" and run_of(m) in ids]
        best = recommended(adapters)
        tuned = sorted(adapters, key=lambda m: model_id(m) not in best)
    base = next(m for m in models.values() if m.kind == "base")
    if tuned:
        own = _base_of(tuned[0])
        base = next((m for m in models.values() if m.kind == "base" and m.model == own), base)
        return [base.placed("a"), tuned[0].placed("b")]
    prompted = next(m for m in models.values() if m.kind == "prompted")
    return [base.placed("a"), *([prompted.placed("b", hint.system)] if hint.system else [])]


def _elsewhere() -> list[Column]:
    """The merge of the address, if its job was told to write the model outside the workspace."""
    job = current.seen().runs.get(st.query_params.get("merge", ""))
    folder = merged_folder(RunPaths(job.root)) if job and job.kind == "merge" else None
    if folder is None or folder.is_relative_to(paths.runs_dir()):
        return []
    return [Column("", "merged", folder.name, str(folder))]


def recommended(models: list[Column]) -> set[str]:
    """Ids of the checkpoints to take, one of each run that has figures to tell them by."""
    runs = sorted({run_of(m) for m in models if m.kind == "adapter"} - {""})
    best = {_best_of(run) for run in runs} - {""}
    return {model_id(m) for m in models if m.adapter in best}


@st.cache_data(ttl=10, show_spinner=False)
def _best_of(run: str) -> str:
    """Folder of the recommended checkpoint's adapter, converted or not; '' without one."""
    files = RunPaths(paths.runs_dir() / run)
    try:
        best = choice.recommended(files)
    except UserError:
        return ""  # the Train page says what is wrong with the run
    if best is None or best.by == "last":
        return ""
    return str(files.adapter / best.checkpoint.stem)


def _base_of(tuned: Column) -> str:
    """The model that a tuned one was made from, as its run names it."""
    run = current.seen().runs.get(run_of(tuned) or st.query_params.get("merge", ""))
    asked = run.params.get("base") or run.params.get("model") if run else ""
    return str(asked or "") or (tuned.model if tuned.kind == "adapter" else "")
