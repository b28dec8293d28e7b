"""Checkpoints that DeepSpeed itself wrote, on the CPU, read as data only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from core.models.data_only import data_only
from core.paths import REPO
from core.weights.zero import read_zero

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (2, 2), (3, 2)])
def test_a_real_zero_checkpoint_is_read(stage: int, ranks: int, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fakes.zero_run", str(stage), str(rank), str(ranks),
             str(tmp_path)],
            cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), told[0][-3000:]
    folder = tmp_path / "iter_2.pth"
    with data_only():  # every type that occurs in it is known
        files = sorted(folder.glob("*.pt"))
        for file in files:
            torch.load(file, map_location="cpu")
    assert len(files) >= 1 + ranks
    expected = torch.load(tmp_path / "expected.pt")
    read = read_zero(folder)
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value.numpy())
