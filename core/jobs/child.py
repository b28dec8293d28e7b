"""Runs one job in a process of its own: ``python -m core.jobs.child RUN_DIR``.

Or ``--wait KIND``: it imports what the kind needs, and is told the folder later (``standby``).

Exit status: 0 after ``result.json`` is on disk, 2 for a UserError, 1 for anything else. What went
wrong is in ``error.json``.
"""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO, cast

from core import fsio
from core.errors import UserError, redacted
from core.jobs import standby
from core.jobs.kinds import kind_of
from core.jobs.records import emit
from core.jobs.spec import read_spec
from core.models import trust
from core.paths import RunPaths

#: Progress lines are for people: five a second are enough.
_INTERVAL = 0.2


class Reporter:
    """An ``OnProgress`` that prints each stage's start and end and at most five lines a second."""

    def __init__(self) -> None:
        self._stage = ""
        self._last = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        if stage == self._stage and done < total and now - self._last < _INTERVAL:
            return
        self._stage, self._last = stage, now
        emit({"type": "progress", "stage": stage, "done": done, "total": total})


def error_record(error: BaseException) -> dict[str, Any]:
    """What ``error.json`` holds. ``kind`` tells a UserError from a crash."""
    if isinstance(error, UserError):
        return {"schema": 1, "kind": "user", **error.to_dict()}
    text = "".join(traceback.format_exception_only(error)).strip()
    return {"schema": 1, "kind": "crash", "what": redacted(text)[:2000]}


class _WithoutSecrets:
    """A stream of the job: what is printed goes to the log without the keys that the job has."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def keep_secrets() -> None:
    """From here on what this process prints has none of the keys that it was given."""
    sys.stdout = cast(TextIO, _WithoutSecrets(sys.stdout))
    sys.stderr = cast(TextIO, _WithoutSecrets(sys.stderr))


def main(argv: list[str]) -> int:
    """Import the job's module, run it, write its result."""
    folder = standby.begun(argv[2]) if argv[1] == standby.WAIT else Path(argv[1]).resolve()
    if folder is None:
        return 0
    run = RunPaths(folder)
    keep_secrets()
    trust.permit()
    try:
        spec = read_spec(run)
        work = kind_of(spec.kind).work
        asked = work.Spec.from_dict(spec.params)
        fsio.write_json(run.result, work.run(asked, run, Reporter()))
        return 0
    except Exception as error:
        told = traceback.format_exc()
        # What the frames hold open goes first: on a full disk a torn file, even one that is
        # deleted, takes the room that the last words need.
        traceback.clear_frames(error.__traceback__)
        with suppress(UserError):
            fsio.write_json(run.error, error_record(error))
        with suppress(OSError):
            sys.stderr.write(told)
        return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
