"""The ``simulate`` job: dialogues of the UltraChat loop as a dataset version."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from core.conversation import Conversation, OnProgress
from core.data import store
from core.data.simulator import SimulateSpec, simulate
from core.errors import UserError
from core.paths import RunPaths
from core.persona.persona import load_persona


def run(params: dict[str, Any], run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Simulate, then save.

    Args:
        params: ``spec`` (fields of SimulateSpec), ``name`` of the new version, ``dataset`` whose
            rows, persona and probes are taken over ("" = dialogues alone), ``base`` model.

    Raises:
        UserError: a bad field, the name is taken, a model failed. Finished dialogues stay cached.
    """
    spec = read_spec(params.get("spec", {}))
    name, parent = str(params["name"]), str(params.get("dataset", ""))
    if store.exists(name):
        raise UserError(f"the name {name!r} is taken", fix=f"use {store.free_name(name)!r}")
    persona = None
    if parent and store.dataset(parent).persona.is_file():
        persona = load_persona(store.dataset(parent).persona)
    result = simulate(
        spec, persona=persona, base=str(params.get("base", "bundled")), on_progress=on_progress
    )

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


def read_spec(values: dict[str, Any]) -> SimulateSpec:
    """A SimulateSpec from JSON; UserError names a field that does not exist."""
    fields = dict(values)
    if "kinds" in fields:
        fields["kinds"] = tuple(fields["kinds"])
    try:
        return SimulateSpec(**fields)
    except TypeError as error:
        raise UserError("the simulation has a field that is not known", why=str(error)) from error
