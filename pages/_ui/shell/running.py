"""What is running now, in words: for the sidebar and for the title of the browser's window."""

from __future__ import annotations

from core.jobs.state import Summary
from core.pipeline.projects import Overview
from pages._ui.shell import current
from pages._ui.shell.language import N_, t, time_left

APP = "Persona Workbench"
_DOING = {
    "generate": N_("Building {name}"),
    "simulate": N_("Simulating talks for {name}"),
    "train": N_("Training {name}"),
    "sweep": N_("Finding the best checkpoint of {name}"),
    "convert": N_("Converting {name}"),
    "merge": N_("Merging {name}"),
    "prove": N_("Proving {name}"),
    "evaluate": N_("Scoring {name}"),
    "export": N_("Exporting {name}"),
    "tune": N_("Making {name}"),
}


def is_stage(run: Summary, seen: Overview) -> bool:
    """Whether a run of the whole pipeline is at work for the same persona."""
    owner = seen.owners.get(run.id)
    whole = [r for r in seen.running if r.kind == "tune" and r.id != run.id]
    return run.kind != "tune" and any(seen.owners.get(r.id) == owner for r in whole)


def in_words(run: Summary) -> str:
    """``Training Mei Lan, run 3 · 4 min left``: plain text that holds the user's words."""
    template, owner = _DOING.get(run.kind), current.seen().owner_of(run=run.id)
    name = owner.title if owner and run.kind == "tune" else current.name_of(run.id)
    doing = t(template, name=name) if template else name
    left = time_left(run.progress.eta_seconds)
    return f"{doing} · {left}" if left else doing


def title(seen: Overview) -> str:
    """A look at the tab tells what runs and how long it takes."""
    first = next((r for r in seen.running if not is_stage(r, seen)), None)
    return f"{in_words(first)} · {APP}" if first else APP
