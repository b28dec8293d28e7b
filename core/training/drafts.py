"""The unsaved form of a new run, so that a reload or a restart of the server does not lose it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from core import fsio, paths
from core.errors import UserError
from core.records import Record


class FormDraft(Record):
    """What was chosen and typed.

    ``values``: settings by name that differ from the automatic ones; ``text``: the raw config, if
    it is edited by hand.
    """

    called: ClassVar[str] = "draft"

    dataset: str = ""
    model: str = "bundled"
    stock_config: str = ""
    values: dict[str, Any] = Field(default_factory=dict)
    text: str | None = None


def load() -> FormDraft:
    """The draft of this workspace; an empty one if there is none, or none that can be read."""
    path = paths.drafts_dir() / "train.json"
    try:
        return FormDraft.from_dict(fsio.read_json(path)) if path.is_file() else FormDraft()
    except (UserError, TypeError, AttributeError):
        return FormDraft()  # of another version: nobody can use it


def save(draft: FormDraft) -> None:
    """Keep it. Raises UserError: the disk refuses."""
    path = paths.drafts_dir() / "train.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fsio.write_json(path, draft.to_dict())
