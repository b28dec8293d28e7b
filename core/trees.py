"""What lies in folders, whatever others have put there: names, depths, sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


def entries(root: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing if it is none.

    Left out are names that are no UTF-8, which no page, address or record can hold.
    """
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if _is_text(path.name))


def _is_text(name: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in name)


def files_under(root: Path) -> Iterator[Path]:
    """The files at any depth, links to files too, in no order; links to folders are not followed.

    Step by step: ``rglob`` calls itself for each level, and a thousand levels end it.
    """
    folders = [root]
    while folders:
        for path in folders.pop().iterdir():
            if path.is_dir():
                if not path.is_symlink():
                    folders.append(path)
            elif path.is_file():
                yield path


def remove(root: Path) -> None:
    """As ``shutil.rmtree``, which ends at a thousand levels. Raises OSError."""
    folders = [root]
    for folder in folders:
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                folders.append(path)
            else:
                path.unlink()
    for folder in reversed(folders):
        folder.rmdir()


def folder_bytes(root: Path) -> int:
    """Bytes of all files under a folder, without what links lead to."""
    return sum(path.lstat().st_size for path in files_under(root) if not path.is_symlink())


@dataclass(frozen=True)
class TreeEntry:
    """One line of a folder listing."""

    path: str
    depth: int
    is_dir: bool
    size: int


#: Levels that a listing shows; what lies deeper is in the sizes only.
_DEPTH = 20


def tree(root: Path, *, limit: int = 500) -> list[TreeEntry]:
    """Files and folders under ``root``, sorted, with sizes in bytes (a folder: the sum)."""
    found: list[TreeEntry] = []

    def walk(folder: Path, depth: int) -> int:
        total = 0
        for child in sorted(entries(folder), key=lambda p: (p.is_file(), p.name)):
            if child.is_symlink():
                continue
            at = len(found)
            is_dir = child.is_dir()
            if len(found) < limit:
                found.append(TreeEntry(child.name, depth, is_dir, 0))
            if is_dir and depth < _DEPTH:
                size = walk(child, depth + 1)
            else:
                size = folder_bytes(child) if is_dir else child.stat().st_size
            if at < limit:
                found[at] = TreeEntry(child.name, depth, is_dir, size)
            total += size
        return total

    walk(root, 0)
    return found
