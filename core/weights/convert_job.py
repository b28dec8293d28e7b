"""The convert job: a training checkpoint as an adapter folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from core.conversation import OnProgress
from core.errors import UserError
from core.paths import RunPaths
from core.records import JobSpec
from core.weights import staging
from core.weights.convert import Engine, convert


class ConvertSpec(JobSpec):
    """What ``convert`` is given; its docstring says what each of them is."""

    job: ClassVar[str] = "convert"
    called: ClassVar[str] = "convert"

    checkpoint: str
    config: str
    out: str
    fp32: bool = False
    engine: Engine = "fast"
    max_shard_size: str = "2GB"


Spec = ConvertSpec


def check(spec: ConvertSpec) -> None:
    """Raises UserError: there is no such file, or the place is taken."""
    for file in map(Path, (spec.checkpoint, spec.config)):
        if not file.exists():
            raise UserError(f"{file} is not there", fix="check the path")
    staging.check_output(Path(spec.out), [Path(spec.checkpoint)])


def run(spec: ConvertSpec, _run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Returns ``adapter``, the new folder. Raises UserError: what ``convert`` refuses."""
    on_progress("convert", 0, 0)
    out = convert(
        Path(spec.checkpoint),
        Path(spec.config),
        Path(spec.out),
        fp32=spec.fp32,
        engine=spec.engine,
        max_shard_size=spec.max_shard_size,
    )
    return {"adapter": str(out)}
