"""What a run was trained from, written before training, compared before a resume."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import fsio
from core.errors import UserError, UserErrors
from core.models import catalog, device, trust
from core.paths import DatasetPaths, RunPaths
from core.training.spec import TrainSpec
from core.training.spec_fields import FIELDS

#: Libraries whose version can change a bit of the result.
LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "xtuner",
    "mmengine",
    "datasets",
    "numpy",
    "deepspeed",
)
#: Spec fields that a resumed run may change: they do not touch weights, data or schedule.
FREE_FIELDS = {"resume_from", "evaluation_inputs", "system", "tensorboard", "dataset", "model"}


def versions() -> dict[str, str]:
    """Installed versions of ``LIBRARIES``; a missing one is 'none'."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


def facts(spec: TrainSpec) -> dict[str, Any]:
    """Everything outside the spec that the result depends on."""
    found = device.describe()
    return {
        "dataset_sha256": fsio.sha256_file(DatasetPaths(Path(spec.dataset)).train),
        "model_fingerprint": catalog.resolve(spec.model).fingerprint(),
        "versions": versions(),
        "world_size": spec.world_size,
        "device": f"{found.kind}: {found.name}",
    }


def write(spec: TrainSpec, run: RunPaths, resume: Path | None) -> None:
    """Write work/training.json, which torchrun's workers and a later resume read."""
    fsio.write_json(
        run.work / "training.json",
        {
            "schema": 1,
            "spec": spec.to_dict(),
            "resume": str(resume) if resume else None,
            **facts(spec),
            **trust.record(catalog.resolve(spec.model).path),
        },
    )


@dataclass(frozen=True)
class Origin:
    """The run that a checkpoint comes from."""

    spec: TrainSpec
    facts: dict[str, Any]


def origin(checkpoint: Path) -> Origin:
    """Read the record beside a checkpoint."""
    data = fsio.read_json(checkpoint.parent / "training.json")
    if data.get("schema") != 1:
        raise UserError(
            f"{checkpoint.parent} was written by another version of this tool", fix="train again"
        )
    return Origin(
        TrainSpec.from_dict(data["spec"]),
        {k: v for k, v in data.items() if k not in {"schema", "spec", "resume"}},
    )


def resume_problems(spec: TrainSpec, checkpoint: Path) -> list[UserError]:
    """Why going on from ``checkpoint`` would not give what the uninterrupted run gives."""
    before = origin(checkpoint)
    problems = []
    for info in FIELDS:
        old, new = getattr(before.spec, info.name), getattr(spec, info.name)
        if info.name not in FREE_FIELDS and old != new:
            problems.append(
                UserError(
                    f"{info.label} was {old}, is now {new}",
                    fix=f"set it back to {old}",
                    where=info.name,
                )
            )
    problems += _fact_problems(before.facts, facts(spec))
    iteration = int(checkpoint.name.removeprefix("iter_").removesuffix(".pth"))
    if iteration >= spec.max_iters:
        problems.append(
            UserError(
                "the checkpoint is the last one: nothing is left to train",
                fix="choose an earlier checkpoint",
            )
        )
    folder = checkpoint.parent / "random_state" / f"iter_{iteration}"
    if len(list(folder.glob("rank_*.pt"))) != before.spec.world_size:
        problems.append(
            UserError(
                f"the random state of {checkpoint.name} is missing", fix="choose another checkpoint"
            )
        )
    return problems


def _fact_problems(old: dict[str, Any], new: dict[str, Any]) -> list[UserError]:
    problems = []
    labels = {
        "dataset_sha256": "the dataset",
        "model_fingerprint": "the base model",
        "world_size": "the number of processes",
        "device": "the device",
    }
    for key, label in labels.items():
        if old.get(key) != new[key]:
            problems.append(
                UserError(
                    f"{label} is not the one that the checkpoint was trained with",
                    why=f"was {str(old.get(key))[:40]}, is {str(new[key])[:40]}",
                    fix="restore it, or start a new run",
                    where=key,
                )
            )
    for name, version in new["versions"].items():
        was = old.get("versions", {}).get(name)
        if was != version:
            problems.append(
                UserError(
                    f"{name} was {was}, is now {version}",
                    fix=f"install {name}=={was}, or start a new run",
                    where="versions",
                )
            )
    return problems


def require_same(spec: TrainSpec, checkpoint: Path) -> None:
    """Raise UserErrors with every reason why the resume would not be bit for bit."""
    if problems := resume_problems(spec, checkpoint):
        raise UserErrors(problems, "resuming would not continue the same run")
