"""What a table of training runs shows of each; read once for a run that is over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core import fsio, trees
from core.jobs.journal import read_tail_records
from core.jobs.state import FINAL, Summary
from core.paths import RunPaths

#: Letters of a note.
NOTE = 2000


@dataclass(frozen=True)
class Line:
    """One run. ``loss``: of its last step; ``bytes``: of its folder; None: not known."""

    loss: float | None
    step: int | None
    steps: int | None
    lr: float | None
    dataset: str
    bytes: int
    note: str


def line(run: Summary) -> Line:
    """Cheap for a run that has ended: its folder is walked once."""
    at = RunPaths(run.root)
    over = run.state in FINAL
    loss, step = _last(at.metrics, _written(at.metrics))
    steps, lr = run.params.get("steps"), run.params.get("lr")
    return Line(
        loss=loss,
        step=step,
        steps=steps if isinstance(steps, int) else None,
        lr=float(lr) if isinstance(lr, int | float) else None,
        dataset=Path(str(run.params.get("dataset") or "")).name,
        bytes=_size(run.root, _written(at.exit) if over else 0),
        note=read_note(at),
    )


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=4096)
def _last(metrics: Path, written: int) -> tuple[float | None, int | None]:
    """(loss, step) of the newest record."""
    for record in reversed(read_tail_records(metrics, 4096) if written else []):
        loss, step = record.get("loss"), record.get("step")
        if record.get("type") == "metric" and isinstance(step, int):
            return (float(loss) if isinstance(loss, int | float) else None), step
    return None, None


@lru_cache(maxsize=4096)
def _size(root: Path, ended: int) -> int:
    """0 while the run is alive: its size is not asked for at every look."""
    return trees.folder_bytes(root) if ended else 0


def read_note(run: RunPaths) -> str:
    """What a person wrote about the run; '' if nothing."""
    try:
        return fsio.read_text(run.note)[:NOTE]
    except OSError:
        return ""


def write_note(run: RunPaths, text: str) -> None:
    """Keep a note; an empty one takes it away. Raises UserError: the disk refuses."""
    with fsio.disk_errors("the note cannot be written"):
        if text.strip():
            fsio.atomic_write_text(run.note, text.strip()[:NOTE] + "\n")
        else:
            run.note.unlink(missing_ok=True)
