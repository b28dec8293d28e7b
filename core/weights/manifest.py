"""MANIFEST.json: size and sha256 of every file, written last; whoever has it has a whole folder.

safetensors loads a file with a flipped bit without a word, so the hashes are the only thing that
notices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import fsio, trees
from core.errors import UserError, UserErrors

NAME = "MANIFEST.json"
SCHEMA = 1


def files_of(folder: Path) -> list[Path]:
    """Every file that a manifest lists, sorted: all but hidden ones and the manifest itself."""
    return sorted(
        p for p in trees.files_under(folder) if p.name != NAME and not p.name.startswith(".")
    )


def write(
    folder: Path, about: Mapping[str, Any], known: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Hash the folder and write its manifest.

    Args:
        about: what the folder is and where it came from; kept under its own keys.
        known: sha256 by relative name, of files that were hashed while they were written.
    """
    known = known or {}
    files = {}
    for path in files_of(folder):
        name = path.relative_to(folder).as_posix()
        files[name] = {
            "bytes": path.stat().st_size,
            "sha256": known.get(name) or fsio.sha256_file(path),
        }
    record = {"schema": SCHEMA, **about, "files": files}
    fsio.write_json(folder / NAME, record)
    return record


def read(folder: Path) -> dict[str, Any]:
    """The manifest. Raises UserError if there is none or it is of another schema."""
    path = folder / NAME
    if not path.is_file():
        raise UserError(
            f"{folder} is not complete",
            why=f"it has no {NAME}, which is written last",
            fix="make the folder again",
        )
    record = fsio.read_json(path)
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise UserError(f"{path} is of an unknown schema", fix="make the folder again")
    files = record.get("files")
    if not isinstance(files, dict) or not all(map(_is_entry, files.values())):
        raise UserError(f"{path} lists no files", fix="make the folder again")
    return record


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )


def verify(folder: Path) -> dict[str, Any]:
    """Compare every file with the manifest and return it.

    Raises:
        UserErrors: one entry for each file that is missing, changed or not listed.
    """
    record = read(folder)
    listed: dict[str, Any] = record["files"]
    problems = []
    for name, expected in listed.items():
        path = fsio.safe_join(folder, name)
        if not path.is_file():
            problems.append(UserError(f"{name} is missing"))
        elif path.stat().st_size != expected["bytes"]:
            problems.append(
                UserError(
                    f"{name} has {path.stat().st_size:,} bytes",
                    why=f"{expected['bytes']:,} were written",
                )
            )
        elif (digest := fsio.sha256_file(path)) != expected["sha256"]:
            problems.append(
                UserError(
                    f"{name} was changed after it was written",
                    why=f"sha256 {digest[:12]}… instead of {expected['sha256'][:12]}…",
                )
            )
    unlisted = {p.relative_to(folder).as_posix() for p in files_of(folder)} - set(listed)
    problems += [UserError(f"{name} is not listed in {NAME}") for name in sorted(unlisted)]
    if problems:
        raise UserErrors(problems, f"{folder} is not as it was written")
    return record
