"""Killed at every write, or with the disk full: nothing, or a complete verified folder."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.errors import UserError
from core.paths import REPO
from core.weights.merge import merge
from tests.fakes import tiny_models as tiny

pytestmark = pytest.mark.slow
#: What one process tries, forking for each trial.
WORK = [["convert", "merge"], pytest.param(["gguf", "ollama"], marks=pytest.mark.soak)]


def _hashes(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, bundled_model: Path) -> tuple[Any, Path]:
    """Base, adapter, checkpoint and a merged model whose tokenizer fits (for the exports)."""
    folder = tmp_path_factory.mktemp("inputs")
    base = tiny.save_base(folder / "base", tied=False)
    peft = tiny.save_adapter(base.path, folder / "adapter", target_modules=["q_proj"])
    tiny.save_checkpoint(peft, folder / "run" / "iter_3.pth")
    tiny.save_config(folder / "run" / "config.py", base.path)
    whole = tiny.save_base(folder / "whole", tokenizer=bundled_model, vocab=512)
    tiny.save_adapter(whole.path, folder / "second", target_modules=["q_proj"])
    merge(whole, folder / "second", folder / "merged")
    return base, folder


@pytest.mark.parametrize("work", WORK, ids=lambda work: work[-1])
def test_at_every_write(inputs: tuple[Any, Path], tmp_path: Path, work: list[str]) -> None:
    _, folder = inputs
    before = _hashes(folder)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fakes.write_faults",
            str(folder),
            str(tmp_path / "out"),
            *work,
        ],
        cwd=REPO,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT ")), None)
    assert line, done.stderr[-3000:]
    found = json.loads(line.removeprefix("RESULT "))
    bad = {name: result["bad"] for name, result in found.items() if result["bad"]}
    assert not bad, f"{bad}\n{done.stderr[-6000:]}"
    assert len(found) == 2 * len(work) and all(result["calls"] >= 4 for result in found.values())
    assert _hashes(folder) == before


def test_a_file_size_limit_is_reported_and_leaves_nothing(
    inputs: tuple[Any, Path], tmp_path: Path
) -> None:
    base, folder = inputs
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(UserError, match="disk is full"):
            merge(base, folder / "adapter", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == [tmp_path / "workspace"]


def test_no_room_is_said_before_anything_is_written(
    inputs: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core import fsio

    base, folder = inputs
    monkeypatch.setattr(fsio, "free_bytes", lambda path: 1000)
    with pytest.raises(UserError, match="not enough disk space"):
        merge(base, folder / "adapter", tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "workspace"]


def test_partial_folder_of_a_living_process_stays(inputs: tuple[Any, Path], tmp_path: Path) -> None:
    base, folder = inputs
    other = tmp_path / f".out.{os.getppid()}.partial"
    other.mkdir()
    merge(base, folder / "adapter", tmp_path / "out")
    assert other.is_dir()
