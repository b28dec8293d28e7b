"""The ``generate`` job: a dataset from a persona and a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from core import fsio, paths
from core.conversation import OnProgress
from core.data.build import DatasetSpec, build_dataset
from core.errors import UserError
from core.models import catalog
from core.paths import RunPaths
from core.persona.persona import load_persona
from core.records import JobSpec


class Spec(JobSpec):
    """What to build, and its name among the datasets or a folder of its own."""

    job: ClassVar[str] = "generate"
    called: ClassVar[str] = "dataset"

    spec: DatasetSpec
    name: str = ""
    out: str | None = None

    @property
    def target(self) -> Path:
        """The new folder. Raises UserError if the name cannot be used."""
        if self.out:
            return Path(self.out)
        name = fsio.check_name(self.name, "dataset name")
        return fsio.safe_join(paths.datasets_dir(), name)


def check(spec: Spec) -> None:
    """Raises UserError: the name is taken or no name, the pack is unusable, there is no model."""
    if not spec.out and spec.target.exists():
        raise UserError(
            f"the name {spec.name!r} is taken",
            why="a saved version never changes",
            fix="choose another name",
        )
    load_persona(Path(spec.spec.persona_path), spec.spec.overrides)
    catalog.resolve(spec.spec.model)


def run(spec: Spec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Build a dataset.

    Returns:
        ``dataset`` (folder), ``name``, ``rows``, ``kinds``, ``probes``.
    """
    check(spec)
    built = build_dataset(spec.spec, spec.target, on_progress)
    manifest = fsio.read_json(built.manifest)
    return {
        "dataset": str(built.root),
        "name": built.root.name,
        **{key: manifest[key] for key in ("rows", "kinds", "probes")},
    }
