"""Feeds one parser: each input in a workspace and a folder of its own."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hypothesis import given, settings

from core.errors import UserError
from tests.fuzz.parsers import Parser

#: Seconds for one small input, far beyond what a loaded machine makes of milliseconds: of the
#: processor, and by the clock, for one that waits.
PATIENCE, PATIENCE_WAITING = 30.0, 600.0

#: Where a file costs no disk, if the system has it: thousands of inputs are written, and synced.
_FAST = "/dev/shm"


def feed(parser: Parser, how: settings) -> int:
    """Run a batch; returns the number of inputs.

    Raises:
        Exception: what the parser raised that is no UserError, for the smallest such input.
        AssertionError: it took longer than ``PATIENCE``.
    """
    count = 0
    home = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_FAST if os.access(_FAST, os.W_OK) else None))
    previous = os.environ.get("PERSONA_HOME")
    os.environ["PERSONA_HOME"] = str(home)

    @how
    @given(parser.inputs)
    def one(data: Any) -> None:
        nonlocal count
        count += 1
        for old in home.iterdir():
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        folder = home / "folder"
        folder.mkdir()
        start, busy = time.monotonic(), time.process_time()
        with suppress(UserError):
            parser.check(data, folder)
        assert time.process_time() - busy < PATIENCE, "it took too long"
        assert time.monotonic() - start < PATIENCE_WAITING, "it waited too long"

    try:
        one()
    finally:
        if previous is None:
            os.environ.pop("PERSONA_HOME")
        else:
            os.environ["PERSONA_HOME"] = previous
        shutil.rmtree(home, ignore_errors=True)
    return count
