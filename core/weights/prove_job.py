"""The prove job: an existing merged model against base + adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from core.conversation import OnProgress
from core.models import catalog, lora
from core.paths import RunPaths
from core.records import JobSpec
from core.weights import manifest


class ProveSpec(JobSpec):
    """What is compared. ``nf4``: also say how far the NF4 base is from the shipped one."""

    job: ClassVar[str] = "prove"
    called: ClassVar[str] = "proof"

    base: str
    adapter: str
    merged: str
    nf4: bool = True


Spec = ProveSpec


def check(spec: ProveSpec) -> None:
    """Raises UserError: there is no such base, no adapter, or no merged model."""
    catalog.resolve(spec.base)
    lora.read(Path(spec.adapter))
    manifest.read(Path(spec.merged))


def run(spec: ProveSpec, _run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Returns the proof's figures, good or bad. Raises UserError: a file was changed or is torn."""
    from core.weights.prove import ProofPlan, prove

    merged = Path(spec.merged)
    written = manifest.verify(merged)
    plan = ProofPlan(nf4=spec.nf4, faithful_nf4=bool(written.get("faithful_nf4")))
    base = catalog.resolve(spec.base)
    return prove(base, Path(spec.adapter), merged, plan, on_progress=on_progress).to_dict()
