"""Numbers and names of new runs."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from core import fsio, paths

#: The tickets of the queue have ten digits.
_MOST = 10**10 - 1


def new_root(name: str) -> Path:
    """A folder that nobody has yet, for a run of this name; call it under the creation lock.

    It is called by its time, its name, and four characters that tell equals apart. Of 65,536 such
    ends, two of a hundred runs in one second are the same about once in thirteen times.
    """
    root = paths.runs_dir()
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{fsio.slug(name, 'run')[:40].strip('-')}"
    while (folder := root / f"{stem}-{secrets.token_hex(2)}").exists():
        pass
    return folder


def next_seq() -> int:
    """Counts runs of this workspace; the clock may be set back, this may not."""
    file = paths.runs_dir() / ".seq"
    try:
        last = int(fsio.read_text(file))
    except (OSError, ValueError):
        last = 0
    if not 0 <= last < _MOST:
        last = 0
    fsio.atomic_write_text(file, f"{last + 1}\n")
    return last + 1
