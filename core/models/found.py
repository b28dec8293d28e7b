"""Models that lie on this machine already: what a picker offers.

Looked for are folders and GGUF files in the workspace's ``models``, the Hugging Face cache and
ModelScope's cache; only file names and config.json are read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core import paths, trees
from core.errors import UserError
from core.models import bundled, folder

Place = Literal["bundled", "workspace", "Hugging Face cache", "ModelScope cache"]


@dataclass(frozen=True)
class Found:
    """``model`` is what ``catalog.resolve`` takes; nothing is fetched for it."""

    model: str
    name: str
    place: Place


def models() -> list[Found]:
    """The bundled model, then the workspace's, then the caches', each by name."""
    first = Found("bundled", bundled.NAME, "bundled")
    return [first, *_workspace(), *_hugging_face(), *_model_scope()]


def _workspace() -> Iterator[Found]:
    root = paths.models_dir()
    for path in trees.entries(root):
        if path == bundled.folder() or path.name.endswith(".partial"):
            continue
        if path.suffix == ".gguf" or _usable(path):
            yield Found(str(path), path.name, "workspace")


def _hugging_face() -> Iterator[Found]:
    """The newest snapshot of each repository, by the name that its owner gave it."""
    from huggingface_hub import constants

    root = Path(constants.HF_HUB_CACHE)
    for repository in sorted(root.glob("models--*--*")):
        snapshots = [path for path in repository.glob("snapshots/*") if _usable(path)]
        if snapshots:
            newest = max(snapshots, key=lambda path: path.stat().st_mtime)
            yield Found(str(newest), name_of(newest), "Hugging Face cache")


def _model_scope() -> Iterator[Found]:
    """``OWNER/NAME`` below ``models``, since 1.9 below ``hub/models``, before below ``hub``."""
    home = Path(os.environ.get("MODELSCOPE_CACHE") or Path.home() / ".cache" / "modelscope")
    old = home / "hub"
    for root in (home / "models", old / "models", old):
        for path in sorted(root.glob("*/*")):
            # A dot in a name is three underscores there, and a link beside the folder has the dot.
            if path.is_symlink() or (root == old and path.parent.name == "models"):
                continue
            if _usable(path):
                name = f"{path.parent.name}/{path.name.replace('___', '.')}"
                yield Found(str(path), name, "ModelScope cache")


def _usable(path: Path) -> bool:
    """Whether it looks like a whole causal model; loading it has the last word."""
    if not (path / "config.json").is_file():
        return False
    try:
        config = folder.config_of(path)
        folder.weight_files(path)
    except (UserError, OSError):
        return False
    return folder.is_causal(config)


def name_of(path: Path) -> str:
    """What people call a model folder: ``owner/name`` for a snapshot of the hub's cache."""
    repository = path.parent.parent.name
    if path.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return path.name
