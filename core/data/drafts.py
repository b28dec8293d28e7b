"""Unsaved work that survives a reload: edits of a dataset with undo, and what forms hold.

Edits are an append-only log, one JSON line for each action, flushed to the disk before the page
is drawn again. Undo and redo are lines of their own, so the history is never lost, two browser
tabs may edit at once, and a line torn by a crash costs that one action.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core import paths
from core.conversation import Conversation
from core.data import store
from core.errors import UserError
from core.fsio import disk_errors, dump_json, loads, open_file, read_json, write_json
from core.paths import DatasetPaths


@dataclass(frozen=True)
class Edit:
    """One action: rows written (by id, new or existing) and ids removed."""

    at: str
    label: str
    rows: tuple[Conversation, ...]
    removed: tuple[str, ...]


class DatasetDraft:
    """A dataset version with the edits made since, as if it had been written already."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._index = store.index(store.dataset(name).train)
        self.done: list[Edit] = []
        self.undone: list[Edit] = []
        self._replay()

    @property
    def _log(self) -> Path:
        return paths.drafts_dir() / f"{self.name}.jsonl"

    @property
    def changed(self) -> bool:
        """Whether there is anything to save."""
        return bool(self.done)

    def __len__(self) -> int:
        return len(self._positions) + len(self._added)

    def write(
        self, rows: Sequence[Conversation], removed: Sequence[str] = (), label: str = ""
    ) -> None:
        """Replace the rows whose ids exist, append the others, remove ``removed``: one action."""
        if rows or removed:
            self._append(
                {
                    "do": "edit",
                    "label": label,
                    "rows": [r.to_row() for r in rows],
                    "removed": list(removed),
                }
            )

    def undo(self) -> None:
        """Take back the last action; nothing happens if there is none."""
        if self.done:
            self._append({"do": "undo"})

    def redo(self) -> None:
        """Do again what was undone last; nothing happens if there is none."""
        if self.undone:
            self._append({"do": "redo"})

    def discard(self) -> None:
        """Forget all edits and their history."""
        self._log.unlink(missing_ok=True)
        self._replay()

    def ids(self) -> set[str]:
        """Ids of the rows as they stand."""
        return {self._index.ids[p] for p in self._positions} | set(self._added)

    def page(self, start: int, count: int, kind: str = "") -> list[Conversation]:
        """``count`` rows from ``start`` on, of one kind or ("") of all."""
        places = self._places(kind)[start : start + count]
        stored = self._index.read(p for p in places if isinstance(p, int))
        return [self._current(next(stored)) if isinstance(p, int) else p for p in places]

    def count(self, kind: str = "") -> int:
        """Rows of one kind, or ("") all."""
        return len(self._places(kind))

    def rows(self) -> Iterator[Conversation]:
        """All rows as they stand, streamed."""
        for row in self._index.read(self._positions):
            yield self._current(row)
        yield from self._added.values()

    def find(self, text: str, limit: int = 200) -> list[Conversation]:
        """The first ``limit`` rows with ``text`` in any turn, upper or lower case alike."""
        wanted = text.casefold()
        found: list[Conversation] = []
        for row in self.rows():
            if any(wanted in m["content"].casefold() for m in row.messages):
                found.append(row)
                if len(found) == limit:
                    break
        return found

    def save(self, name: str, note: str = "") -> DatasetPaths:
        """Write the rows as a new version; this draft is empty afterwards.

        Raises:
            UserError: see ``store.save``; the draft is kept then.
        """
        saved = store.save(
            name,
            self.rows(),
            parent=self.name,
            note=note or f"{len(self.done)} edits of {self.name}",
        )
        self.discard()
        return saved

    # --- the log ---

    def _append(self, action: dict[str, Any]) -> None:
        line = dump_json({"at": datetime.now(UTC).isoformat(timespec="seconds"), **action})
        cannot = "the change of the draft cannot be written"
        with disk_errors(cannot):
            self._log.parent.mkdir(parents=True, exist_ok=True)
        with disk_errors(cannot), self._log.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # A leading line break ends a line that a crash may have torn.
            file.write(f"\n{line}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        self._replay()

    def _replay(self) -> None:
        self.done, self.undone = [], []
        for action in _read_log(self._log):
            match action["do"]:
                case "undo" if self.done:
                    self.undone.append(self.done.pop())
                case "redo" if self.undone:
                    self.done.append(self.undone.pop())
                case "edit":
                    if edit := _edit(action):
                        self.done.append(edit)
                        self.undone.clear()
        self._apply()

    def _apply(self) -> None:
        stored = set(self._index.ids)
        self._replaced: dict[str, Conversation] = {}
        self._added: dict[str, Conversation] = {}
        removed: set[str] = set()
        for edit in self.done:
            for row in edit.rows:
                (self._replaced if row.id in stored else self._added)[row.id] = row
                removed.discard(row.id)
            for gone in edit.removed:
                self._added.pop(gone, None)
                removed.add(gone)
        self._positions = [p for p, i in enumerate(self._index.ids) if i not in removed]

    def _current(self, row: Conversation) -> Conversation:
        return self._replaced.get(row.id, row)

    def _places(self, kind: str) -> list[int | Conversation]:
        """Positions of stored rows, then the added rows themselves."""
        places: list[int | Conversation] = [
            p for p in self._positions if not kind or self._kind_at(p) == kind
        ]
        places += [row for row in self._added.values() if not kind or row.kind == kind]
        return places

    def _kind_at(self, position: int) -> str:
        replaced = self._replaced.get(self._index.ids[position])
        return replaced.kind if replaced else self._index.kinds[position]


def _edit(action: dict[str, Any]) -> Edit | None:
    """An edit of the log; None for a line that this version did not write."""
    try:
        rows = tuple(Conversation.from_row(r) for r in action["rows"])
        removed = tuple(map(str, action["removed"]))
        return Edit(str(action["at"]), str(action["label"]), rows, removed)
    except (UserError, LookupError, TypeError, AttributeError):
        return None


def _read_log(path: Path) -> Iterable[dict[str, Any]]:
    if not path.is_file():
        return
    with open_file(path) as file:
        for line in file:
            try:
                action = loads(line)
            except (ValueError, RecursionError):  # an empty line, or one torn by a crash
                continue
            if isinstance(action, dict) and action.get("do") in ("edit", "undo", "redo"):
                yield action


def save_form(values: dict[str, Any], of: str = "persona") -> None:
    """Remember what a form holds; nothing is written if nothing changed.

    Args:
        of: which form: ``persona`` of the Dataset page, or one that ``pages`` names.
    """
    if values != load_form(of):
        write_json(_form_path(of), {"schema": 1, "values": values})


def load_form(of: str = "persona") -> dict[str, Any]:
    """The remembered form; empty if there is none or it cannot be read."""
    try:
        record = read_json(_form_path(of))
    except UserError:
        return {}
    values = record.get("values") if isinstance(record, dict) else None
    return values if isinstance(values, dict) and record.get("schema") == 1 else {}


def _form_path(of: str) -> Path:
    return paths.drafts_dir() / f"{of}-form.json"
