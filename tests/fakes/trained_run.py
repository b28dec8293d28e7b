"""A training run on disk with real checkpoints of a tiny model, as if XTuner had written it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import fsio
from core.conversation import Conversation
from core.jobs import api
from core.paths import RunPaths
from core.training import checkpoints
from core.training.spec import TrainSpec
from tests.fakes import tiny_models as tiny


def make_dataset(folder: Path) -> Path:
    """Train rows and a manifest; enough for losses and the model card."""
    rows = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": f"I'm Luna, answer {i}."},
            ],
            "identity",
        )
        for i in range(40)
    ]
    fsio.write_jsonl(folder / "train.jsonl", [row.to_row() for row in rows])
    fsio.write_json(
        folder / "dataset.json",
        {"schema": 1, "name": folder.name, "rows": len(rows), "locales": ["en"]},
    )
    return folder


def make_run(
    home: Path, base: Path, *, name: str = "luna", steps: tuple[int, ...] = (30, 60),
    recommended: int | None = 30, **lora: Any,
) -> RunPaths:  # fmt: skip
    """The run's folder, with one checkpoint a step."""
    dataset = make_dataset(home / "datasets" / f"{name}-data")
    spec = TrainSpec(dataset=str(dataset), model=str(base), steps=max(steps), lora_r=8,
                     lora_alpha=24)  # fmt: skip
    run = api.create("train", spec.to_dict(), name=name)
    tiny.save_config(run.config, base)
    peft = tiny.attach(
        tiny.load(base), **{"target_modules": ["q_proj", "v_proj"], "std": 0.2, **lora}
    )
    for step in steps:
        path = run.work / f"iter_{step}.pth"
        tiny.save_checkpoint(peft, path)
        checkpoints.record(path)
    if recommended:
        row = {"step": recommended, "checkpoint": str(run.work / f"iter_{recommended}.pth")}
        fsio.write_json(run.root / "sweep.json", {"schema": 1, "recommended": row})
    return run
