"""What a job can be: a name, the function that does the work, whether it needs the device."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import UserError


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        name: as written in ``spec.json``.
        entry: ``module:function`` with the signature ``(params, run, on_progress) -> dict``,
            imported only in the job's own process. Empty for ``command``.
        needs_device: loads a model, so it waits for the device lock.
    """

    name: str
    entry: str
    needs_device: bool = True


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("generate", "core.data.generate_job:run"),
        Kind("simulate", "core.data.simulate_job:run"),
        Kind("train", "core.training.train_job:run"),
        Kind("merge", "core.weights.merge_job:run"),
        Kind("export", "core.weights.merge_job:run_export", needs_device=False),
        Kind("evaluate", "core.evaluation.score_job:run"),
        Kind("sweep", "core.evaluation.score_job:run_sweep"),
        # An argv of the user's own (from the command line only), watched like the others: it
        # has to write result.json, or it counts as incomplete whatever it exits with.
        Kind("command", ""),
    )
}


def kind_of(name: str) -> Kind:
    """Raises UserError for a kind that does not exist."""
    if name not in KINDS:
        raise UserError(f"there is no job kind {name!r}", fix=f"use one of {', '.join(KINDS)}")
    return KINDS[name]
