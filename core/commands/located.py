"""Folders on a command line, by their whole path."""

from __future__ import annotations

from pathlib import Path


def located(text: str) -> str:
    """A folder's absolute path; 'bundled', a hub id or a name as it was written.

    Jobs and the chat worker run in the repository's folder, so a path that is relative to where
    the command was given would be another one there, or be taken for a hub id.
    """
    return str(Path(text).resolve()) if text != "bundled" and Path(text).is_dir() else text
