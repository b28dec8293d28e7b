"""Named dataset versions: one folder each, whole or absent, never changed once written.

A version is edited through ``core.data.drafts`` and saved under a new name that remembers its
parent.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from core import paths, trees
from core.conversation import Conversation, read_conversations
from core.data.importer import UniqueIds
from core.errors import UserError
from core.fsio import (
    check_name,
    disk_errors,
    open_file,
    parse_line,
    read_json,
    safe_join,
    sha256_file,
    slug,
    write_json,
    write_jsonl,
)
from core.paths import DatasetPaths
from core.persona.persona import Persona

SCHEMA = 1


@dataclass(frozen=True)
class DatasetSummary:
    """One line of the dataset list. ``problem`` says why a folder cannot be used ("" = it can)."""

    name: str
    root: Path
    rows: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    locales: tuple[str, ...] = ()
    created: str = ""
    parent: str = ""
    note: str = ""
    bytes: int = 0
    problem: str = ""


def dataset(name: str) -> DatasetPaths:
    """The paths of a complete version.

    Raises:
        UserError: bad name, or no complete dataset of that name (the existing ones are listed).
    """
    found = DatasetPaths(safe_join(paths.datasets_dir(), check_name(name, "dataset name")))
    if not found.manifest.is_file() or not found.train.is_file():
        names = [s.name for s in list_datasets() if not s.problem]
        raise UserError(
            f"there is no dataset {name!r}",
            fix=f"use one of {', '.join(names)}" if names else "build one first",
        )
    return found


def manifest(name: str) -> dict[str, Any]:
    """``dataset.json`` of a version."""
    return dict(read_json(dataset(name).manifest))


def exists(name: str) -> bool:
    """Whether the name is taken, by a whole version or by remains."""
    return (paths.datasets_dir() / check_name(name, "dataset name")).exists()


def free_name(wanted: str) -> str:
    """``wanted``, or ``wanted-2``, ``wanted-3`` ... : the first that is not taken."""
    stem, number = wanted[:56], 1
    name = stem
    while exists(name):
        number += 1
        name = f"{stem}-{number}"
    return name


def suggested_name(persona: Persona) -> str:
    """A free name from the persona's own name."""
    names = [persona.slot("name", loc) for loc in persona.locales if "name" in persona.pack.slots]
    return free_name(slug(names[0] if names else persona.id, slug(persona.id)))


def list_datasets() -> list[DatasetSummary]:
    """Every folder under the datasets folder, newest first; unusable ones with their problem."""
    root = paths.datasets_dir()
    folders = [
        p
        for p in trees.entries(root)
        if p.is_dir() and not p.is_symlink() and not p.name.startswith(".")
    ]
    return sorted(map(_summary, folders), key=lambda s: (s.created, s.name), reverse=True)


def _summary(folder: Path) -> DatasetSummary:
    at = DatasetPaths(folder)
    if not at.manifest.is_file():
        return DatasetSummary(folder.name, folder, problem="not finished: dataset.json is missing")
    try:
        manifest = read_json(at.manifest)
        if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
            raise UserError("dataset.json has an unknown schema")
        size = sum(p.stat().st_size for p in folder.iterdir() if p.is_file())
        return DatasetSummary(
            name=folder.name,
            root=folder,
            rows=int(manifest.get("rows") or 0),
            kinds={str(k): int(v) for k, v in (manifest.get("kinds") or {}).items()},
            locales=tuple(map(str, manifest.get("locales") or ())),
            created=str(manifest.get("created") or ""),
            parent=str(manifest.get("parent") or ""),
            note=str(manifest.get("note") or ""),
            bytes=size,
            problem="" if at.train.is_file() else "train.jsonl is missing",
        )
    except (UserError, OSError) as error:
        return DatasetSummary(folder.name, folder, problem=str(error))
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        return DatasetSummary(folder.name, folder, problem=f"dataset.json is odd: {error}"[:300])


@dataclass(frozen=True)
class RowIndex:
    """Where each row of a train.jsonl starts, and its labels: random access without parsing.

    ``offsets[i]``, ``ids[i]``, ``kinds[i]``, ``intents[i]`` belong to row ``i``.
    """

    path: Path
    offsets: Sequence[int]
    ids: Sequence[str]
    kinds: Sequence[str]
    intents: Sequence[str]

    def read(self, positions: Iterable[int]) -> Iterator[Conversation]:
        """The rows at these positions, in the order asked for."""
        with open_file(self.path) as file:
            for position in positions:
                file.seek(self.offsets[position])
                yield Conversation.from_row(parse_line(file.readline(), str(self.path)))


def index(train: Path) -> RowIndex:
    """The index of a train.jsonl, kept in memory until the file changes."""
    stat = train.stat()
    return _index(train, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _index(train: Path, _mtime: int, _size: int) -> RowIndex:
    offsets, ids, kinds, intents = [], [], [], []
    at = 0
    with open_file(train) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = parse_line(line, f"{train}:{number}")
                if not isinstance(row, dict) or not isinstance(row.get("id"), str):
                    raise UserError(
                        "this line is no row of a dataset",
                        fix="restore the file, or import it into a new dataset",
                        where=f"{train}:{number}",
                    )
                offsets.append(at)
                ids.append(row["id"])
                kinds.append(str(row.get("kind", "own")))
                intents.append(str(row.get("intent", "")))
            at += len(line)
    return RowIndex(train, offsets, ids, kinds, intents)


def rows(name: str) -> Iterator[Conversation]:
    """All rows of a version, streamed."""
    return read_conversations(dataset(name).train)


def save(
    name: str,
    conversations: Iterable[Conversation],
    *,
    parent: str = "",
    note: str = "",
    extra: Mapping[str, Any] | None = None,
    check: Callable[[DatasetPaths], None] | None = None,
) -> DatasetPaths:
    """Write a new version; it appears whole, or not at all.

    The persona pack and the probes are taken over from ``parent``, if given. Row ids are made
    unique. ``extra`` joins the manifest. ``check`` may raise before the version appears.

    Raises:
        UserError: the name is taken or not allowed, there are no rows, or the disk is full.
    """
    target = safe_join(paths.datasets_dir(), check_name(name, "dataset name"))
    if target.exists():
        raise UserError(
            f"the name {name!r} is taken",
            why="a saved version never changes",
            fix=f"use another name, e.g. {free_name(name)!r}",
        )
    before = dataset(parent) if parent else None
    partial = DatasetPaths(target.with_name(f".{name}.{os.getpid()}.partial"))
    shutil.rmtree(partial.root, ignore_errors=True)
    try:
        manifest = _write_rows(partial, conversations)
        if before:
            for source, copy in (
                (before.probes, partial.probes),
                (before.persona, partial.persona),
            ):
                if source.is_file():
                    shutil.copyfile(source, copy)
            manifest = {**_inherited(before), **manifest, "parent": parent}
        if check:
            check(partial)
        _write_manifest(partial, {**manifest, "note": note, **(extra or {})})
        os.rename(partial.root, target)
    except OSError as error:
        raise UserError(
            f"cannot save {name!r}",
            why=error.strerror or str(error),
            fix="free disk space, or choose another folder with PERSONA_HOME",
        ) from error
    finally:
        shutil.rmtree(partial.root, ignore_errors=True)
    return DatasetPaths(target)


def _write_rows(at: DatasetPaths, conversations: Iterable[Conversation]) -> dict[str, Any]:
    kinds: Counter[str] = Counter()
    locales: Counter[str] = Counter()
    unique = UniqueIds()

    def out() -> Iterator[dict[str, Any]]:
        for row in conversations:
            kinds[row.kind] += 1
            locales[row.locale] += 1
            yield unique(row).to_row()

    count = write_jsonl(at.train, out())
    if not count:
        raise UserError("there are no rows to save", fix="add or import rows first")
    return {"rows": count, "kinds": dict(kinds), "locales": sorted(locales)}


def _inherited(before: DatasetPaths) -> dict[str, Any]:
    """What stays true of an edited version: how its persona and its mix were made."""
    manifest = read_json(before.manifest)
    gone = ("files", "hashes", "sha256", "created", "note", "parent")
    return {k: v for k, v in manifest.items() if k not in gone}


def _write_manifest(at: DatasetPaths, values: Mapping[str, Any]) -> None:
    files = [p for p in (at.train, at.probes, at.persona) if p.is_file()]
    write_json(
        at.manifest,
        {
            **values,
            "schema": SCHEMA,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "sha256": {p.name: sha256_file(p) for p in files},
        },
    )


def delete(name: str) -> None:
    """Remove a version (or the remains of one) for good.

    Raises:
        UserError: there is no such folder, or it is a link to somewhere else.
    """
    root = paths.datasets_dir()
    folder = root / check_name(name, "dataset name")
    if folder.is_symlink() or not folder.is_dir():
        raise UserError(f"there is no dataset {name!r}")
    # Renamed first: a crash in the middle leaves remains that no list shows as a dataset.
    doomed = root / f".{name}.{os.getpid()}.deleted"
    with disk_errors(f"cannot delete dataset {name}"):
        os.rename(folder, doomed)
        trees.remove(doomed)
        # Edits of it would otherwise reappear in the next dataset of that name.
        (paths.drafts_dir() / f"{name}.jsonl").unlink(missing_ok=True)
