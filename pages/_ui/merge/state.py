"""What the Merge page keeps between looks, and what it knows about runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from core.evaluation import choice
from core.jobs import api
from core.jobs.state import ACTIVE, Summary
from core.paths import RunPaths
from core.training import lifecycle
from core.training.checkpoints import Checkpoint
from core.weights.manifest import NAME as MANIFEST
from pages._ui.shell import address, current
from pages._ui.shell.language import N_

NEW, RESULTS = "new", "results"
VIEWS = {
    NEW: (N_("New merge"), ":material/add:"),
    RESULTS: (N_("Results"), ":material/verified:"),
}


@dataclass(frozen=True)
class Source:
    """A whole checkpoint of a training run, with what is needed to merge it."""

    run: RunPaths
    name: str
    checkpoint: Checkpoint
    model: str
    dataset: str


def merges() -> list[Summary]:
    """Merge jobs, newest first."""
    return [s for s in api.list_runs() if s.kind == "merge"]


def trained() -> dict[str, Summary]:
    """Training runs with at least one whole checkpoint, newest first, by id."""
    return {
        s.id: s
        for s in api.list_runs()
        if s.kind == "train" and any(c.whole for c in _checkpoints(s.root))
    }


def _checkpoints(root: Path) -> list[Checkpoint]:
    return lifecycle.checkpoints_of(RunPaths(root))


def checkpoints(root: Path) -> tuple[list[Checkpoint], choice.Recommended | None]:
    """Whole checkpoints, the recommended one first and then the latest; and why it."""
    whole = [c for c in reversed(_checkpoints(root)) if c.whole]
    chosen = choice.recommended(RunPaths(root))
    return sorted(whole, key=lambda c: chosen is None or c.step != chosen.step), chosen


def merged_folder(run: RunPaths) -> Path | None:
    """The merged model of a finished merge job."""
    result = api.status(run).result
    folder = Path(result["merged"]) if result else None
    return folder if folder and (folder / MANIFEST).is_file() else None


def choose_view() -> str:
    """The switch at the top: on the results if there are any and no training is sent."""
    asked, here = st.query_params, current.current()
    alive = any(s.state in ACTIVE for s in merges())
    merged = here is not None and bool(here.of("merge"))
    shown = "merge" in asked or ("run" not in asked and (alive or merged))
    return address.view("merge_view", VIEWS, RESULTS if shown else NEW)
