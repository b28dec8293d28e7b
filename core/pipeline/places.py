"""What lies in the workspace beside runs: datasets and chats, each read once for each change."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from core import fsio, paths, trees
from core.jobs.journal import parse_record
from core.paths import DatasetPaths
from core.pipeline.belonging import of_dataset


def dataset_folders() -> list[tuple[float, Path]]:
    """Whole datasets with the time at which they were written."""
    root, found = paths.datasets_dir(), []
    for folder in trees.entries(root):
        manifest = DatasetPaths(folder).manifest
        try:
            written = manifest.stat().st_mtime
        except OSError:
            continue
        if not folder.name.startswith(".") and of_dataset(folder) is not None:
            found.append((written, folder))
    return found


def chats() -> list[tuple[float, str, tuple[str, ...]]]:
    """(last change, id, model and adapter folders of the columns) of every conversation."""
    root, found = paths.chats_dir(), []
    for file in trees.entries(root):
        if file.suffix != ".jsonl":
            continue
        try:
            info = file.stat()
        except OSError:
            continue
        found.append((info.st_mtime, file.stem, _models(file, info.st_ino)))
    return found


@lru_cache(maxsize=4096)
def _models(chat: Path, _inode: int) -> tuple[str, ...]:
    """From the first line, which is written once."""
    try:
        with fsio.open_file(chat) as file:
            header = parse_record(file.readline(1 << 20)) or {}
    except OSError:  # no file; the list of conversations says so
        return ()
    columns = header.get("columns")
    found = [c for c in columns if isinstance(c, dict)] if isinstance(columns, list) else []
    return tuple(str(c.get("adapter") or c.get("model") or "") for c in found)
