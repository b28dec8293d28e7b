"""What a job can be: a name, the module that does the work, whether it needs the device.

The modules belong to packages above this one, so they are registered here by name and imported
where they are needed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from core.conversation import OnProgress
from core.errors import UserError
from core.paths import RunPaths
from core.records import JobSpec


class Work(Protocol):
    """The module of a kind."""

    Spec: type[JobSpec]

    def check(self, spec: Any) -> None:
        """Look at what the job needs, before anything is made; raises UserError(s).

        Called by ``api.launch``, so that whoever starts a job is told the same, at once.
        """

    def run(self, spec: Any, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
        """Do the work, in the job's own process; what is returned becomes ``result.json``."""


#: What loading and asking a model takes.
_MODEL = "core.inference.imports:ready"


@dataclass(frozen=True)
class Kind:
    """One kind of job.

    Attributes:
        name: as written in ``spec.json``.
        module: a ``Work``. Empty for ``command``.
        needs_device: loads a model, so it waits for the device lock.
        beside: a setting that, when it is on, lets the job work beside the run that holds the
            device, because it waits for what that run makes.
        phases: how the time divides among the stages it reports, where they differ in kind; see
            ``core.jobs.remaining``. Measured with the bundled model on two cores.
        faults: ``module:function``, ``(params, run) -> reasons.Table``, if the kind has rules of
            its own.
        ready: ``module:function``, which imports what the work needs late; see ``standby``.
    """

    name: str
    module: str
    needs_device: bool = True
    beside: str = ""
    faults: str = ""
    ready: str = _MODEL
    phases: Mapping[str, float] | None = None

    def waits(self, params: Mapping[str, Any]) -> bool:
        """Whether a job with these settings waits for the device."""
        return self.needs_device and not params.get(self.beside)

    @property
    def work(self) -> Work:
        """The module, imported."""
        return cast(Work, importlib.import_module(self.module))

    def get_ready(self) -> None:
        """Import the module and what its work needs late, before there is anything to do."""
        assert self.work
        module, _, function = self.ready.partition(":")
        getattr(importlib.import_module(module), function)()


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("generate", "core.data.generate_job", phases={"prepare": 5, "ask": 8, "": 87}),
        Kind("simulate", "core.data.simulate_job"),
        Kind(
            "train",
            "core.training.train_job",
            faults="core.training.faults:of_run",
            ready="core.training.entry:ready",
            phases={"prepare": 2, "load": 3, "train": 95},
        ),
        Kind("merge", "core.weights.merge_job", phases={"convert": 2, "merge": 8, "prove": 90}),
        Kind("convert", "core.weights.convert_job", needs_device=False),
        Kind("prove", "core.weights.prove_job"),
        Kind("export", "core.weights.export_job", needs_device=False),
        Kind("evaluate", "core.evaluation.score_job"),
        Kind("sweep", "core.evaluation.sweep_job", beside="follow"),
        # Its stages wait for the device, each for itself.
        Kind("tune", "core.pipeline.tune_job", needs_device=False, phases={}),
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
