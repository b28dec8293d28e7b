"""A kind of job for tests: it reports a step every so often until it is told that it is enough.

``registered`` is the text of a ``sitecustomize.py`` that makes it the kind ``convert`` in every
process of a test.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

from core.conversation import OnProgress
from core.paths import REPO, RunPaths
from core.records import JobSpec


class Spec(JobSpec):
    """``steps``: of a twentieth of a second each."""

    job: ClassVar[str] = "convert"
    called: ClassVar[str] = "slow"

    steps: int


def check(spec: Spec) -> None:
    """Nothing is needed."""


def ready() -> None:
    """Says in its own way that it was imported."""
    print("ready() prints where nobody reads")


def run(spec: Spec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Print, and report each step."""
    print("the job prints into its log", flush=True)
    for step in range(spec.steps):
        on_progress("slow", step + 1, spec.steps)
        time.sleep(0.05)
    return {"steps": spec.steps}


def registered(needs_device: bool) -> str:
    """Python that puts this kind into the place of ``convert``."""
    return f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from core.jobs import kinds
kinds.KINDS["convert"] = kinds.Kind(
    "convert", {__name__!r}, needs_device={needs_device}, ready={__name__ + ":ready"!r}
)
"""


def install(folder: Path, *, needs_device: bool) -> Path:
    """Put it where PYTHONPATH may point to; returns the folder."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(registered(needs_device), encoding="utf-8")
    return folder
