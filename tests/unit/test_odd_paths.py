"""Paths are no patterns and no code: folders as people name them, from Start to a merged model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from core import fsio
from core.commands.main import main
from core.conversation import Conversation
from core.errors import UserError
from core.models.catalog import resolve
from core.paths import RunPaths
from core.training import compat, train_job
from core.training.preflight import preflight
from core.training.spec import TrainSpec
from core.weights import export_job, merge_job
from tests.unit.test_wild_models import to_bin

#: What a pattern, a shell, a format string, a template or Python would read something into.
ODD = "a[1]*? q\"q it's 日本 {{ x }} {0} %s %(y)s \\n #é"
ROWS = [
    Conversation(
        f"r{i}",
        [{"role": "user", "content": f"Who {i}?"}, {"role": "assistant", "content": f"Luna {i}."}],
    )
    for i in range(6)
]


def _spec(dataset: Path, model: Path) -> TrainSpec:
    return TrainSpec(
        dataset=str(dataset), model=str(model), steps=2, warmup_steps=1, batch_size=2,
        accumulation=1,
        checkpoint_every=2, evaluation_inputs=["Who are you?"],
    )  # fmt: skip


def test_a_lock_s_name_is_short_enough_in_bytes(tmp_path: Path) -> None:
    """Named after the whole path of the rows' cache: 120 Chinese characters are 360 bytes."""
    from datasets.utils._filelock import FileLock

    compat.lock_names_by_bytes()
    for name in ("人设工作台" * 24, "plain"):
        with FileLock(str(tmp_path / f"{name}.lock")) as lock:
            assert lock.is_locked
            assert len(Path(lock.lock_file).name) == (len("plain.lock") if name == "plain" else 69)


@pytest.mark.slow
def test_from_start_to_a_merged_model(tiny_llama: Path, tmp_path: Path) -> None:
    home = tmp_path / ODD
    model = shutil.copytree(tiny_llama, home / "mo[d]el 'q")
    to_bin(model)  # training reads pickled weights too
    dataset = home / 'd[at]a "q"'
    dataset.mkdir()
    fsio.write_jsonl(dataset / "train.jsonl", (row.to_row() for row in ROWS))
    spec = _spec(dataset, model)
    assert preflight(spec, disk=tmp_path).problems == []
    run = RunPaths(home / 'r[un] "q"')
    made = train_job.run(spec, run, lambda *progress: None)
    asked = merge_job.MergeSpec(
        base=str(model), checkpoint=made["final"], config=str(run.config), nf4_report=False
    )
    merged = merge_job.run(asked, run, lambda *progress: None)
    assert merged["proof"]["ok"] and resolve(merged["merged"])
    for target in ("gguf", "ollama"):
        wanted = {"merged": merged["merged"], "format": target, "kind": "f16"}
        out = export_job.run(export_job.ExportSpec(**wanted), run, lambda *p: None)
        assert Path(out["out"]).is_dir()


@pytest.mark.parametrize("name", ["a$HOME b", "a::b", "${PATH}"])
def test_names_that_cannot_work_are_refused_before_start(
    tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    """datasets and fsspec expand variables and chained addresses in every path that they read."""
    dataset = tmp_path / name.replace("/", "_")
    dataset.mkdir()
    fsio.write_jsonl(dataset / "train.jsonl", (row.to_row() for row in ROWS))
    spec = _spec(dataset, tiny_llama)
    problems = preflight(spec, disk=tmp_path).problems
    assert any("cannot be read by XTuner" in p.what for p in problems)
    with pytest.raises(UserError, match="cannot be read by XTuner"):
        train_job.run(spec, RunPaths(tmp_path / "run"), lambda *progress: None)
    better = dataset.rename(tmp_path / "better")  # the advice
    assert preflight(_spec(better, tiny_llama), disk=tmp_path).problems == []


@pytest.mark.parametrize("name", ["a$HOME b", "a::b"])
def test_a_workspace_that_training_cannot_read_is_refused_at_once(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PERSONA_HOME", str(tmp_path / name))
    assert main(["dataset", "list"]) == 2
    assert "set PERSONA_HOME to a folder without them" in capsys.readouterr().err
    monkeypatch.setenv("PERSONA_HOME", str(tmp_path / "better"))  # the advice
    assert main(["dataset", "list"]) == 0


def test_what_a_killed_merge_left_is_found_under_any_name(tmp_path: Path) -> None:
    import subprocess

    from core.weights.staging import staged

    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / f".out [1]*.{gone.pid}.partial"
    left.mkdir()
    with staged(tmp_path / "out [1]*"):
        assert not left.exists()
