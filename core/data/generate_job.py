"""The ``generate`` job: a dataset from a persona and a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import fsio, paths
from core.conversation import OnProgress
from core.data.build import DatasetSpec, build_dataset
from core.errors import UserError
from core.paths import RunPaths


def run(params: dict[str, Any], run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Build a dataset.

    Args:
        params: ``spec`` (fields of DatasetSpec), and ``out`` (a folder) or ``name`` (of a new
            version among the datasets).

    Returns:
        ``dataset`` (folder), ``name``, ``rows``, ``kinds``, ``probes``.
    """
    spec = DatasetSpec.from_params(dict(params.get("spec", {})))
    built = build_dataset(spec, _target(params), on_progress)
    manifest = fsio.read_json(built.manifest)
    return {
        "dataset": str(built.root),
        "name": built.root.name,
        **{key: manifest[key] for key in ("rows", "kinds", "probes")},
    }


def _target(params: dict[str, Any]) -> Path:
    if params.get("out"):
        return Path(params["out"])
    name = fsio.check_name(str(params.get("name", "")), "dataset name")
    target = fsio.safe_join(paths.datasets_dir(), name)
    if target.exists():
        raise UserError(
            f"the name {name!r} is taken",
            why="a saved version never changes",
            fix="choose another name",
        )
    return target
