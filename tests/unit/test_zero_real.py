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


#: ZeRO stage and number of ranks.
CASES = ["1x1", "2x2", "3x2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder a case."""
    folder = tmp_path_factory.mktemp("zero")
    done = subprocess.run(
        [sys.executable, "-m", "tests.fakes.zero_run", str(folder), *CASES],
        cwd=REPO, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_real_zero_checkpoint_is_read(runs: Path, case: str) -> None:
    ranks = int(case.split("x")[1])
    folder = runs / case / "iter_2.pth"
    with data_only():  # every type that occurs in it is known
        files = sorted(folder.glob("*.pt"))
        for file in files:
            torch.load(file, map_location="cpu")
    assert len(files) >= 1 + ranks
    expected = torch.load(runs / case / "expected.pt")
    read = read_zero(folder)
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value.numpy())
