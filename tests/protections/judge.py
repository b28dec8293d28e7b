"""Judges one protection: its test must pass as things are, and fail without the protection."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.protections.cases import Protection

REPO = Path(__file__).resolve().parents[2]
_COPIED = (
    "core", "pages", "tests", "data_templates", "docs", ".streamlit", "streamlit_app.py",
    "pyproject.toml", "README.md", "SECURITY.md", "requirements.txt", "requirements-nodeps.txt",
    "requirements-dev.txt", "Makefile",
)  # fmt: skip
#: A test that has not ended by then has failed; a merge at every write takes minutes.
PATIENCE = 900.0


def count(protection: Protection, folder: Path = REPO) -> int:
    """How often the text of a protection stands in its file: it must be once."""
    file = folder / protection.file
    return file.read_text(encoding="utf-8").count(protection.old) if file.is_file() else 0


def copy_source(folder: Path) -> None:
    """A tree to change: what tests need of the repository."""
    for name in _COPIED:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)


@contextmanager
def _without(protection: Protection, folder: Path) -> Iterator[None]:
    """The tree without a protection, for as long as the block runs."""
    file = folder / protection.file
    text = file.read_text(encoding="utf-8")
    try:
        file.write_text(text.replace(protection.old, protection.new), encoding="utf-8")
        yield
    finally:
        file.write_text(text, encoding="utf-8")


class Judge:
    """Judges in one copied tree; a test that several protections share passes once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._passed: dict[str, str] = {}
        copy_source(folder)

    def verdict(self, protection: Protection) -> str:
        """``honest``, or what is wrong with the test of a protection."""
        if (stands := count(protection, self.folder)) != 1:
            return f"STALE: the text stands {stands} times in the source"
        test = protection.test
        if test not in self._passed:
            self._passed[test] = self._run(test)
        if self._passed[test] != "passed":
            return f"{self._passed[test].upper()} as things are"
        with _without(protection, self.folder):
            without = self._run(test)
        # Nothing collected, or a broken import, would be no proof that the test saw anything.
        return {"failed": "honest", "passed": "BLIND: passes without it"}.get(
            without, f"NO PROOF: {without} without it"
        )

    def _run(self, test: str) -> str:
        """``passed``, ``failed``, ``skipped``, or what came instead of a result."""
        command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-rs"]
        command += ["--reruns", "0", "-m", "", test]
        log = self.folder / ".test-output"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, cwd=self.folder, env={**os.environ, "PYTHONPATH": str(self.folder)},
                stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        try:
            status = process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return "failed"  # it hangs, as what it defends against does
        finally:
            with suppress(ProcessLookupError):  # what the test left behind goes with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._sweep()
        text = log.read_text(encoding="utf-8", errors="replace")
        if status == 0 and " passed" not in text:
            return "skipped"
        return {0: "passed", 1: "failed"}.get(status, f"pytest ended with {status}")

    def _sweep(self) -> None:
        """End what runs out of this tree still: without its protection a run may never end."""
        for left in psutil.process_iter():
            with suppress(psutil.Error):
                if any(str(self.folder) in part for part in left.cmdline()):
                    left.kill()


def timed(judge: Judge, protection: Protection) -> tuple[str, float]:
    """The verdict, and the seconds that it took."""
    start = time.monotonic()
    return judge.verdict(protection), time.monotonic() - start
