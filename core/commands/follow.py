"""Start a job from the command line and stay with it until it is over."""

from __future__ import annotations

from typing import Any

from core.console import ProgressLine
from core.jobs import api
from core.jobs.spec import Options
from core.records import JobSpec


def complete(
    spec: JobSpec, name: str, *, parent: str | None = None, pass_env: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Run a job, draw its progress, return what it returned; Ctrl-C stops it.

    Raises:
        UserError: it cannot start, or did not succeed.
    """
    run = api.launch(spec, name=name[:60], parent=parent, options=Options(pass_env=pass_env))
    line = ProgressLine()
    try:
        return api.finish(run, lambda now: line.show(spec.job, now))
    except KeyboardInterrupt:
        line.note(f"stopped {run.root.name}")
        raise
    finally:
        line.end()
