"""The file in which finished dialogues are kept, one line each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.fsio import dump_json, open_file


def append(cache: Path, record: dict[str, Any]) -> None:
    """Add a record, flushed to the disk."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with cache.open("ab") as file:
        # A leading line break ends a line that a crash may have torn.
        file.write(f"\n{dump_json(record)}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def read(cache: Path, schema: int) -> Iterator[dict[str, Any]]:
    """Whole records; a dialogue whose line was torn by a crash is played again."""
    if not cache.is_file():
        return
    with open_file(cache) as file:
        for line in file:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("schema") == schema:
                yield record
