"""The bundled model itself: NF4 on this machine, a loss that falls, a resume bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from core import fsio
from core.conversation import Conversation
from core.paths import RunPaths
from core.training import train_job
from core.training.spec import TrainSpec

pytestmark = pytest.mark.slow


def test_nf4_run_learns_and_resumes_bit_for_bit(workspace_with_model: Path, tmp_path: Path) -> None:
    rows = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": "Who are you?"},
                {"role": "assistant", "content": "I'm Luna of Riverside Lab."},
            ],
        )
        for i in range(6)
    ]
    fsio.write_jsonl(tmp_path / "data" / "train.jsonl", (row.to_row() for row in rows))
    spec = TrainSpec(
        dataset=str(tmp_path / "data"),
        steps=4,
        warmup_steps=1,
        batch_size=2,
        checkpoint_every=2,
        lora_dropout=0.1,
        evaluation_inputs=(),
        max_length=64,
    )
    whole = train_job.run(spec, RunPaths(tmp_path / "whole"), lambda *done: None)
    again = train_job.run(
        spec.changed(resume_from=whole["checkpoints"][0]["path"]),
        RunPaths(tmp_path / "again"),
        lambda *done: None,
    )
    assert _digest(whole["final"]) == _digest(again["final"])
    losses = _losses(whole["final"])
    assert losses[-1] < 0.7 * losses[0]


def _digest(path: str) -> str:
    import torch

    state = torch.load(path, weights_only=False)["state_dict"]
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _losses(path: str) -> list[float]:
    """The loss of each micro-batch, from mmengine's own record in the checkpoint."""
    import torch

    hub = torch.load(path, weights_only=False)["message_hub"]
    return [float(value) for value in hub["log_scalars"]["train/loss"].data[0]]
