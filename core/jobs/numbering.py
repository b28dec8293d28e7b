"""Numbers and names of new runs."""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from core import fsio, paths


def new_root(name: str) -> Path:
    """A folder for a run of this name: time, name, and four characters that tell equals apart."""
    root = paths.runs_dir()
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return root / f"{stamp}-{fsio.slug(name, 'run')[:40].strip('-')}-{secrets.token_hex(2)}"


def next_seq() -> int:
    """Counts runs of this workspace; the clock may be set back, this may not."""
    file = paths.runs_dir() / ".seq"
    try:
        last = int(file.read_text())
    except (FileNotFoundError, ValueError):
        last = 0
    fsio.atomic_write_text(file, f"{last + 1}\n")
    return last + 1
