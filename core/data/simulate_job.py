"""The ``simulate`` job: dialogues of the UltraChat loop as a dataset version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from core.conversation import Conversation, OnProgress
from core.data import store
from core.data.simulator import SimulateSpec, simulate
from core.errors import UserError
from core.paths import RunPaths
from core.persona.persona import load_persona
from core.records import JobSpec


class Spec(JobSpec):
    """What to play, and where it goes.

    ``name``: of the new dataset version. ``dataset``: whose rows, persona and probes are taken
    over ("" = dialogues alone). ``base``: the model that will be trained.
    """

    job: ClassVar[str] = "simulate"
    called: ClassVar[str] = "simulation"

    spec: SimulateSpec
    name: str
    dataset: str = ""
    base: str = "bundled"


def check(spec: Spec) -> None:
    """Raises UserError: the name is taken, or there is no such dataset."""
    if store.exists(spec.name):
        raise UserError(
            f"the name {spec.name!r} is taken", fix=f"use {store.free_name(spec.name)!r}"
        )
    if spec.dataset:
        store.dataset(spec.dataset)


def run(spec: Spec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Simulate, then save.

    Raises:
        UserError: the name is taken, a model failed. Finished dialogues stay cached.
    """
    check(spec)
    name, parent = spec.name, spec.dataset
    persona = None
    if parent and store.dataset(parent).persona.is_file():
        persona = load_persona(store.dataset(parent).persona)
    result = simulate(spec.spec, persona=persona, base=spec.base, on_progress=on_progress)

    def rows() -> Iterator[Conversation]:
        if parent:
            yield from store.rows(parent)
        yield from result.rows

    report = result.report.to_json()
    saved = store.save(
        name,
        rows(),
        parent=parent,
        note=f"{len(result.rows)} simulated dialogues",
        extra={"simulation": report},
    )
    return {
        "dataset": str(saved.root),
        "name": name,
        "dialogues": len(result.rows),
        "report": report,
    }
