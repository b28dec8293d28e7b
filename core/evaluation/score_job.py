"""The evaluate job: a tuned model against its base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from core.conversation import OnProgress
from core.errors import UserError
from core.evaluation import report
from core.evaluation.plan import Size
from core.models import lora
from core.paths import DatasetPaths, RunPaths
from core.records import JobSpec

if TYPE_CHECKING:
    from core.evaluation.pool import Source


class ScoreSpec(JobSpec):
    """What is scored.

    Args:
        base: ``bundled``, a folder or a hub id.
        merged, adapter: the tuned model: a model folder, or an adapter on the base; or both.
        dataset: the dataset's folder, for persona and probes.
        out: folder of the scorecard; None is the run's ``export``.
    """

    job: ClassVar[str] = "evaluate"
    called: ClassVar[str] = "score"

    base: str
    merged: str | None = None
    adapter: str | None = None
    dataset: str
    size: Size = "quick"
    out: str | None = None


Spec = ScoreSpec


def check(spec: ScoreSpec) -> None:
    """Raises UserError: there is no such dataset, base or tuned model."""
    dataset_of(spec.dataset)
    if len(sides(spec)) < 2:
        raise UserError(
            "a scorecard needs the base and a tuned model", fix="give merged, or adapter, or both"
        )


def run(spec: ScoreSpec, run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Score a tuned model.

    Returns:
        ``scorecard``, ``replies``, ``report`` (paths), ``verdict``, ``recall`` and ``leak`` of the
        judged side, ``seconds``.
    """
    from core.evaluation import scorecard

    card = scorecard.evaluate(
        sides(spec), dataset_of(spec.dataset), size=spec.size, on_progress=on_progress
    )
    out = Path(spec.out) if spec.out else run.export
    saved = card.save(out)
    page = report.write_html([saved], out / "report.html")
    judged = card.sides[card.subject]
    return {
        "scorecard": str(saved),
        "replies": str(out / "replies.jsonl"),
        "report": str(page),
        "verdict": card.verdict.name,
        "recall": judged.recall.to_json(),
        "leak": judged.leak.to_json(),
        "seconds": card.seconds,
    }


def dataset_of(folder: str) -> DatasetPaths:
    """The dataset in a folder. Raises UserError if it is missing."""
    if not Path(folder).is_dir():
        raise UserError(f"there is no dataset folder {folder}", fix="build the dataset first")
    return DatasetPaths(Path(folder))


def sides(spec: ScoreSpec) -> dict[str, Source]:
    """The sides to score, base first. Raises UserError for models that cannot be used."""
    from core.evaluation.pool import Source
    from core.models import catalog

    base = catalog.resolve(spec.base)
    found = {"base": Source(base)}
    if spec.adapter:
        lora.read(Path(spec.adapter))
        found["adapter"] = Source(base, Path(spec.adapter))
    if spec.merged:
        found["merged"] = Source(catalog.resolve(spec.merged))
    return found
