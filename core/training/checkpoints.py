"""Checkpoints of a run: which are whole, which may be opened, how a new run takes them over.

A ``.pth`` is a pickle, and a pickle is code. Nothing here unpickles one: wholeness is read from
the zip structure that torch writes, and only files whose sha256 a run of this workspace signed
may be resumed from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import fsio, seal, trees
from core.errors import UserError

_NAME = re.compile(r"iter_(\d+)(\.pth)?")
#: One line a checkpoint, appended by the training process once the checkpoint is on disk.
LISTING = "checkpoints.jsonl"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found in a work folder. ``problem`` says why it is not whole."""

    step: int
    path: Path
    size: int
    problem: str = ""

    @property
    def whole(self) -> bool:
        """Whether it can be converted and resumed from."""
        return not self.problem


def _files(path: Path) -> Iterator[Path]:
    """The file itself, or the files of a DeepSpeed checkpoint folder, sorted."""
    if path.is_dir():
        yield from sorted(trees.files_under(path))
    else:
        yield path


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in _files(path))


def sha256(path: Path) -> str:
    """Digest of a checkpoint file, or of the names and digests of a folder's files."""
    if not path.is_dir():
        return fsio.sha256_file(path)
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path)}:{fsio.sha256_file(file)}\n".encode())
    return digest.hexdigest()


def record(path: Path) -> None:
    """Append a finished checkpoint to its work folder's listing (training process only)."""
    name, digest = path.name, sha256(path)
    line = {"schema": 1, "name": name, "bytes": _size(path), "sha256": digest}
    _list(path.parent, {**line, "signature": seal.sign(_statement(name, digest))})


def _list(work: Path, line: Mapping[str, Any]) -> None:
    with (work / LISTING).open("a", encoding="utf-8") as file:
        file.write(fsio.dump_json(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _statement(name: object, digest: object) -> str:
    return f"checkpoint {name} {digest}"


#: What a line of the listing must hold to be one.
_ENTRY = {"name": str, "bytes": int, "sha256": str}


def listed(work: Path) -> dict[str, dict[str, Any]]:
    """Recorded checkpoints of a work folder by name; a torn last line is left out."""
    found: dict[str, dict[str, Any]] = {}
    try:
        text = fsio.read_text(work / LISTING)
    except OSError:
        return {}
    for line in text.split("\n"):
        if not line.endswith("}"):
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and all(isinstance(entry.get(k), t) for k, t in _ENTRY.items()):
            found[entry["name"]] = entry
    return found


def scan(work: Path, accumulation: int = 1) -> list[Checkpoint]:
    """Every checkpoint of a work folder, by step; torn ones with the reason.

    Cheap enough for a page: sizes and the zip directory are read, not the data.
    """
    entries = listed(work)
    found = []
    for path in work.glob("iter_*") if work.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        size = _size(path)
        problem = _problem(path, size, entries.get(path.name))
        found.append(Checkpoint(int(match[1]) // accumulation, path, size, problem))
    return sorted(found, key=lambda c: c.step)


def _problem(path: Path, size: int, entry: dict[str, Any] | None) -> str:
    if path.is_symlink():
        return "is a link, not a file of this run"
    if entry is None:
        return "was not finished: the run did not record it"
    if size != entry["bytes"]:
        return f"is torn: {size:,} bytes of {entry['bytes']:,}"
    for file in _files(path):
        if file.suffix in {".pth", ".pt"} and not zipfile.is_zipfile(file):
            return f"is torn: {file.name} does not open"
    return ""


def require_own(path: Path) -> Path:
    """Return the real path if a run of ours wrote exactly this checkpoint.

    Raises:
        UserError: the file is missing, lies outside the run that claims it, is not recorded, or
            differs from what was recorded. Such a file could run any code when it is opened.
    """
    real = path.resolve()
    refusal = "a checkpoint is a pickle, and a foreign pickle can run any code on this machine"
    if not real.exists():
        raise UserError(f"checkpoint {path} is not there", fix="choose one of the run's list")
    if not _NAME.fullmatch(real.name) or not (real.parent / "training.json").is_file():
        raise UserError(
            f"{path} is not a checkpoint of a run of this tool",
            why=refusal,
            fix="resume from a checkpoint of a run in the list",
        )
    entry = listed(real.parent).get(real.name)
    if entry is None:
        raise UserError(
            f"{path} was not recorded by its run",
            why=refusal,
            fix="resume from an earlier checkpoint of the run",
        )
    if not seal.signed(_statement(real.name, entry.get("sha256")), entry.get("signature")):
        raise UserError(
            f"{path} was not written by a run of this workspace",
            why=f"the record beside it does not carry this workspace's signature; {refusal}",
            fix="resume it in the workspace that trained it, or start a new run",
        )
    if _size(real) != entry.get("bytes") or sha256(real) != entry["sha256"]:
        raise UserError(
            f"{path} is not the file that the run wrote",
            why="its size or sha256 differs: it is torn or was changed",
            fix="resume from an earlier checkpoint of the run",
        )
    return real


def adopt(source: Path, work: Path) -> Path:
    """Make ``source``, its random state and the checkpoints before it part of a new run.

    Files are hard-linked where the disk allows it, so a resumed run lists its whole history and
    costs no space. What this workspace did not sign stays behind, and nothing is signed anew:
    lines go over as they are. Returns the path to resume from, inside ``work``.
    """
    origin = source.parent
    if origin == work.resolve():
        return source
    until = _iteration(source)
    for name, line in listed(origin).items():
        candidate = origin / name
        signed = seal.signed(_statement(name, line["sha256"]), line.get("signature"))
        if not (signed and _is_own(candidate) and _iteration(candidate) <= until):
            continue
        _link(candidate, work / name)
        states = Path("random_state", f"iter_{_iteration(candidate)}")
        for state in sorted((origin / states).glob("rank_*.pt")):
            if _is_own(state):
                _link(state, work / states / state.name)
        if name not in listed(work):
            _list(work, line)
    return work / source.name


def _is_own(path: Path) -> bool:
    return path.exists() and not path.is_symlink()


def _iteration(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else -1


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=fsio.link_or_copy)
    else:
        fsio.link_or_copy(source, target)
