"""What this workspace made itself: a signature under a key that lies in the workspace alone.

A record that lies beside a file proves nothing, because whoever forges the file forges the record
too. A signature needs the key (``.key``, readable by its owner only), which no download holds.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from core import fsio, paths
from core.errors import UserError


def _key() -> bytes:
    """The workspace's key, made at first use."""
    path = paths.home() / ".key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            # Linked into place whole: two processes at once must end with one key.
            made = path.with_name(f".key.{os.getpid()}.{secrets.token_hex(4)}.partial")
            handle = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as file:
                file.write(secrets.token_hex(32))
            try:
                os.link(made, path)
            except FileExistsError:
                pass
            finally:
                made.unlink()
        key = fsio.read_bytes(path).strip()
    except OSError as error:
        raise UserError(
            f"the workspace's key {path} cannot be used",
            why=error.strerror or str(error),
            fix="remove what stands in its place, free disk space, or give the folder back to "
            "this user",
        ) from error
    if len(key) != 64:  # anybody can sign with an empty one
        raise UserError(
            f"the workspace's key {path} is not one",
            why="it has another length than what this program writes",
            fix="delete it; a new one is made, and what was signed with the old one counts no more",
        )
    return key


def sign(text: str) -> str:
    """Signature of ``text`` (hex HMAC-SHA256). Raises UserError: the key cannot be written."""
    return hmac.new(_key(), text.encode(), hashlib.sha256).hexdigest()


def signed(text: str, signature: object) -> bool:
    """Whether this workspace signed exactly this text."""
    return isinstance(signature, str) and hmac.compare_digest(
        sign(text).encode(), signature.encode("utf-8", "replace")
    )


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.seal")


def seal(path: Path) -> None:
    """Sign a file that this workspace wrote; the signature lies beside it."""
    fsio.atomic_write_text(_beside(path), sign(fsio.sha256_file(path)) + "\n")


def sealed(path: Path) -> bool:
    """Whether this workspace wrote the file just as it is now."""
    try:
        return signed(fsio.sha256_file(path), fsio.read_text(_beside(path)).strip())
    except OSError:
        return False
