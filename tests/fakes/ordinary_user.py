"""Processes for which permissions count, though root runs the tests; and disks that are full."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from core.paths import REPO

_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1


def _ordinary() -> None:
    """Root loses the right to write where nobody may."""
    if os.geteuid() == 0:
        ctypes.CDLL(None, use_errno=True).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)


def _full() -> None:
    """No file may have more than 16 bytes: what a full disk does to a write, by the kernel."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, resource.RLIM_INFINITY))


DISKS = {"read-only": _ordinary, "full": _full}


def run_on(disk: str, *argv: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python with a workspace on such a disk: its output and exit status.

    For ``read-only`` what is in the workspace loses its write permission, and gets it back.
    """
    places = [home, *home.rglob("*")] if disk == "read-only" else []
    before = {place: place.stat().st_mode for place in places}
    more: dict[str, Any] = {"preexec_fn": DISKS[disk]}
    try:
        for place in places:
            place.chmod(before[place] & 0o555)
        return subprocess.run(
            [sys.executable, "-B", *argv], cwd=REPO, capture_output=True, text=True, timeout=280,
            env={**os.environ, "PERSONA_HOME": str(home), **env}, check=False, **more,
        )  # fmt: skip
    finally:
        for place, mode in before.items():
            place.chmod(mode)
