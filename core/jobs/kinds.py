"""What a job can be: a name, the function that does the work, whether it needs the device.

The functions belong to packages above this one, so they are registered here by name and imported
where they are needed: the work only in the job's own process.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from core.errors import UserError


@dataclass(frozen=True)
class Kind:
    """One kind of job. Functions are named as ``module:function``.

    Attributes:
        name: as written in ``spec.json``.
        entry: ``(params, run, on_progress) -> dict``, the work. Empty for ``command``.
        needs_device: loads a model, so it waits for the device lock.
        faults: ``(params, run) -> reasons.Table``, if the kind has rules of its own.
    """

    name: str
    entry: str
    needs_device: bool = True
    faults: str = ""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("generate", "core.data.generate_job:run"),
        Kind("simulate", "core.data.simulate_job:run"),
        Kind("train", "core.training.train_job:run", faults="core.training.faults:of_run"),
        Kind("merge", "core.weights.merge_job:run"),
        Kind("export", "core.weights.merge_job:run_export", needs_device=False),
        Kind("evaluate", "core.evaluation.score_job:run"),
        Kind("sweep", "core.evaluation.score_job:run_sweep"),
        # An argv of the user's own (from the command line only), watched like the others: it
        # has to write result.json, or it counts as incomplete whatever it exits with.
        Kind("command", "", faults="core.training.faults:of_run"),
    )
}


def kind_of(name: str) -> Kind:
    """Raises UserError for a kind that does not exist."""
    if name not in KINDS:
        raise UserError(f"there is no job kind {name!r}", fix=f"use one of {', '.join(KINDS)}")
    return KINDS[name]


def load(function: str) -> Any:
    """Import a function that is named as ``module:function``."""
    module, name = function.split(":")
    return getattr(importlib.import_module(module), name)
