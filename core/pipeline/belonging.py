"""Whose a dataset, a run or a chat is: read from what each of them wrote down about itself.

A persona is known by its pack, its name and its maker, as ``dataset.json`` records them. A run
names its dataset, or another run whose product it works on; a chat names models that runs made.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from core import fsio, paths
from core.data.store import SCHEMA
from core.errors import UserError
from core.jobs.state import Summary
from core.paths import DatasetPaths
from core.persona.persona import load_persona

#: Settings that name a run's folder or something in it, in the order in which they are asked.
_PRODUCTS = ("run", "checkpoint", "adapter", "merged")


class Identity(NamedTuple):
    """What tells one persona from another. ``pack`` and ``maker`` are '' where nobody said."""

    pack: str
    name: str
    maker: str

    @property
    def key(self) -> str:
        """Short, for an address: ``mei-lan-3f2a``."""
        digest = hashlib.sha256(json.dumps(self, ensure_ascii=True).encode()).hexdigest()
        return f"{fsio.slug(self.name)[:40].strip('-')}-{digest[:4]}"


class Belonging:
    """The owners of a workspace's runs, looked up once each."""

    def __init__(self, runs: Iterable[Summary]) -> None:
        self._runs = {run.id: run for run in runs}
        self._owners: dict[str, Identity | None] = {}
        self._builds = {
            str(run.params.get("name")): run
            for run in self._runs.values()
            if run.kind == "generate" and run.params.get("name")
        }

    def of_run(self, run_id: str) -> Identity | None:
        """None for a run that names nobody (a command of the user's own, an unreadable spec)."""
        if run_id not in self._owners:
            self._owners[run_id] = None  # for runs that name each other in a circle
            run = self._runs.get(run_id)
            self._owners[run_id] = self._look_up(run) if run else None
        return self._owners[run_id]

    def _look_up(self, run: Summary) -> Identity | None:
        params = run.params
        if run.kind in ("generate", "simulate"):
            made = of_dataset(paths.datasets_dir() / str(params.get("name") or ""))
            if made is not None and params.get("name"):
                return made
        if run.kind == "generate":
            return asked_for(params.get("spec") or {}, "persona_path")
        if run.kind == "tune":
            return asked_for(params.get("spec") or {}, "persona")
        if dataset := params.get("dataset"):
            return self.of_folder(paths.datasets_dir() / str(dataset))
        named = [_run_of(str(params[key])) for key in _PRODUCTS if params.get(key)]
        for other in (*named, run.parent):
            if other and (owner := self.of_run(other)):
                return owner
        return None

    def of_folder(self, dataset: Path) -> Identity:
        """Of a dataset's folder; of one that was deleted, by the build that made it."""
        found = of_dataset(dataset)
        if found is None and dataset.name in self._builds:
            found = self.of_run(self._builds[dataset.name].id)
        return found or Identity("", dataset.name, "")

    def of_model(self, folder: str) -> Identity | None:
        """Of a model or adapter folder, if a run made it."""
        run = _run_of(folder)
        return self.of_run(run) if run else None


def of_dataset(folder: Path) -> Identity | None:
    """From its manifest; None if there is none that can be read."""
    manifest = DatasetPaths(folder).manifest
    try:
        return _of_manifest(manifest, manifest.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _of_manifest(manifest: Path, _written: int) -> Identity | None:
    try:
        found = fsio.read_json(manifest)
    except UserError:
        return None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return None
    said = [str(found.get(key) or "") for key in ("persona", "name", "maker")]
    return Identity(said[0], said[1] or manifest.parent.name, said[2])


def asked_for(spec: Mapping[str, Any], pack: str) -> Identity | None:
    """Of a build that has not made its dataset (yet): the pack, and the slots that were filled."""
    file, slots = Path(str(spec.get(pack) or "")), spec.get("overrides") or {}
    named, made = _slot(slots, "name"), _slot(slots, "author")
    try:
        known = _of_pack(file, file.stat().st_mtime_ns)
    except (OSError, UserError):  # a pack that is gone or broken: by what is known without it
        known = Identity(file.stem, file.stem, "")
    return Identity(known.pack, named or known.name, made or known.maker)


def _slot(slots: Mapping[str, str], name: str) -> str:
    return next((v for k, v in slots.items() if k == name or k.startswith(f"{name}.")), "")


@lru_cache(maxsize=256)
def _of_pack(file: Path, _written: int) -> Identity:
    persona = load_persona(file)
    locale, slots = persona.locales[0], persona.pack.slots
    name, maker = (persona.slot(s, locale) if s in slots else "" for s in ("name", "author"))
    return Identity(persona.id, name or persona.id, maker)


def _run_of(place: str) -> str | None:
    """The id of the run that a path lies in; of a tuned folder, the run behind its link."""
    path = Path(place)
    for root, depth in ((paths.runs_dir(), 0), (paths.tuned_dir(), 1)):
        if path.is_relative_to(root) and path != root:
            own = path.relative_to(root).parts[0]
            if depth == 0:
                return own
            try:
                return Path(os.readlink(root / own / "runs" / "train")).name
            except OSError:
                return None
    return None
