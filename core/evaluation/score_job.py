"""The evaluate and sweep jobs, run by the job child: parameters in, JSON out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.conversation import OnProgress
from core.errors import UserError
from core.paths import DatasetPaths, RunPaths


def run(params: dict[str, Any], run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Score a tuned model.

    Args:
        params: ``base`` (model), ``merged`` (model folder) and/or ``adapter`` (adapter folder),
            ``dataset`` (folder), ``size`` ("quick"), ``out`` (folder; default the run's export).

    Returns:
        ``scorecard``, ``replies``, ``report`` (paths), ``verdict``, ``recall`` and ``leak`` of the
        judged side, ``seconds``.
    """
    from core.evaluation import report, scorecard

    card = scorecard.evaluate(
        sides(params),
        dataset_of(params),
        size=params.get("size", "quick"),
        on_progress=on_progress,
    )
    out = Path(params.get("out") or run.export)
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


def run_sweep(params: dict[str, Any], run: RunPaths, on_progress: OnProgress) -> dict[str, Any]:
    """Score every checkpoint of a training run; see ``core.evaluation.sweep.sweep``.

    Args:
        params: ``run`` (folder of the training run), ``dataset``, ``base``, ``size`` ("sweep"),
            ``stop_when_passed``, ``follow`` (bool).
    """
    from core.evaluation.sweep import sweep

    found = sweep(
        RunPaths(Path(params["run"])),
        dataset_of(params),
        params["base"],
        size=params.get("size", "sweep"),
        stop_when_passed=bool(params.get("stop_when_passed", False)),
        follow=bool(params.get("follow", False)),
        on_progress=on_progress,
    )
    return found.to_json()


def dataset_of(params: dict[str, Any]) -> DatasetPaths:
    """The dataset folder among the parameters. Raises UserError if it is missing."""
    root = Path(params["dataset"])
    if not root.is_dir():
        raise UserError(f"there is no dataset folder {root}", fix="build the dataset first")
    return DatasetPaths(root)


def sides(params: dict[str, Any]) -> dict[str, Any]:
    """The sides to score, base first. Raises UserError for models that cannot be used."""
    from core.evaluation.pool import Source
    from core.models import catalog, lora

    base = catalog.resolve(str(params["base"]))
    found = {"base": Source(base)}
    if params.get("adapter"):
        adapter = Path(params["adapter"])
        lora.read(adapter)
        found["adapter"] = Source(base, adapter)
    if params.get("merged"):
        found["merged"] = Source(catalog.resolve(str(params["merged"])))
    return found
