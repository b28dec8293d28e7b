"""``tune`` and Run all at toy size: real jobs on a tiny model, stopped, gone on, on every list."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from core import fsio, paths
from core.commands import main as cli
from core.data import store
from core.errors import UserError
from core.jobs import api
from core.jobs.state import State, Summary
from core.paths import REPO, TEMPLATES, RunPaths
from core.pipeline import following, projects
from core.pipeline.following import StageView
from core.pipeline.stages import STAGES, TuneSpec
from core.pipeline.tune import prepare, tune
from core.pipeline.tune_job import Spec
from tests.faults.support import until

ASSISTANT = str(TEMPLATES / "assistant.yaml")


def spec_of(model: Path, **changes: object) -> TuneSpec:
    """A few rows, a few steps; rehearsal needs a model that can talk, so there is none."""
    values: dict[str, object] = {
        "persona": ASSISTANT,
        "overrides": {"name": "Luna", "author": "Riverside Lab"},
        "model": str(model),
        "dataset": {
            "locales": ["en"],
            "max_rows": 12,
            "rehearsal_ratio": 0.0,
            "near_miss_ratio": 0.0,
            "multi_turn": 0.0,
        },
        "training": {"steps": 8, "checkpoint_every": 2, "warmup_steps": 1, "lora_r": 4},
        **changes,
    }
    return TuneSpec.from_dict(values)


def page(path: str, **query: str) -> str:
    """Every text that a page shows."""
    app = AppTest.from_file(str(REPO / "streamlit_app.py"), default_timeout=120).run()
    for key, value in query.items():
        app.query_params[key] = value
    app = app.switch_page(f"pages/{path}").run()
    assert not app.exception
    boxes = [option for box in app.selectbox for option in box.options]
    return "\n".join(boxes)


def by_stage(run: RunPaths) -> dict[str, StageView]:
    return {view.stage: view for view in following.stages_of(run)}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_run_all_is_stopped_with_its_stage_gone_on_with_and_every_list_shows_it(
    workspace: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Many steps, so that it is stopped among them; few checkpoints, which take longer.
    training = {"steps": 200, "checkpoint_every": 50, "warmup_steps": 1, "lora_r": 4}
    spec = spec_of(tiny_llama, training=training, size="smoke")
    run = api.launch(Spec(spec=spec), name="Luna")
    with pytest.raises(api.AlreadyStarted):
        api.launch(Spec(spec=spec), name="Luna")
    assert list(by_stage(run)) == list(STAGES)

    def training_began() -> bool:
        train = by_stage(run)["train"].now
        return train is not None and train.done >= 4

    until(training_began, 240)
    api.stop(run)
    until(lambda: api.status(run).final, 60)
    stopped = by_stage(run)
    assert api.status(run).state is State.STOPPED
    assert stopped["dataset"].done
    assert stopped["train"].now is not None
    assert stopped["train"].now.state is State.STOPPED
    assert not any(s.state is State.RUNNING for s in api.list_runs())

    again = following.resume(run)
    result = api.finish(again)
    ended = by_stage(again)
    assert all(view.done for view in ended.values())
    assert ended["dataset"].run == stopped["dataset"].run
    _everything_is_there(Path(result["output"]), result)
    _each_waited_for_the_one_before()
    _every_list_shows_it(capsys)

    (persona,) = projects.overview().projects
    assert persona.title == "Luna"
    assert {s.standing for s in persona.steps} == {"done"}
    names = projects.overview().names
    assert str(names[again.root.name]) == "Luna, run all 1 (resumed)"
    _neither_home_needs_the_other(spec, Path(result["output"]))


def _everything_is_there(out: Path, result: dict[str, Any]) -> None:
    card = fsio.read_json(out / "scorecard.json")
    assert {p.name for p in out.iterdir()} == {
        "dataset", "runs", "adapter", "merged", "scorecard.json", "replies.jsonl",
        "report.html", "tune.json",
    }  # fmt: skip
    assert (out / "dataset" / "train.jsonl").is_file()
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert "Riverside" in (out / "dataset" / "persona.yaml").read_text()
    assert "Compared with base" in (out / "merged" / "README.md").read_text()
    assert set(card["seconds"]) == {"dataset", "train", "sweep", "merge", "evaluate"}
    assert card["merge_check"]["ok"] and result["scorecard"] == str(out / "scorecard.json")
    assert result["verdict"]


def _each_waited_for_the_one_before() -> None:
    """Its processes were there before the stage before it had ended."""
    runs = _made()
    for before, after in itertools.pairwise(("train", "sweep", "merge", "evaluate")):
        ended = fsio.read_json(runs[before].root / "exit.json")["ended"]
        assert fsio.read_json(runs[after].root / "supervisor.json")["start_time"] < ended


def _made() -> dict[str, Summary]:
    """By kind; of the trainings the one that came to its end."""
    return {s.kind: s for s in api.list_runs() if s.state is State.SUCCEEDED}


def _every_list_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    runs = _made()
    assert set(runs) == {"tune", "generate", "train", "sweep", "merge", "evaluate"}
    assert all(s.root.parent == paths.runs_dir() for s in runs.values())
    assert runs["merge"].parent == runs["train"].id
    swept = fsio.read_json(runs["sweep"].root / "result.json")
    merged = fsio.read_json(runs["merge"].root / "spec.json")["params"]
    assert merged["checkpoint"] == swept["checkpoint"]
    assert len(swept["checkpoints"]) <= 3  # of five: those that the figures left
    assert runs["evaluate"].parent == runs["merge"].id
    assert [s.name for s in store.list_datasets()] == ["luna"]
    out = Path(fsio.read_json(runs["tune"].root / "result.json")["output"])
    for stage, kind in zip(
        STAGES, ("generate", "train", "sweep", "merge", "evaluate"), strict=True
    ):
        assert (out / "runs" / stage).resolve() == runs[kind].root
    assert cli.main(["runs"]) == 0
    listed = capsys.readouterr().out
    assert all(s.id in listed for s in runs.values())

    assert "luna" in page("1_Dataset.py", view="rows")
    assert "Luna, run 1" in page("2_Train.py", run=runs["train"].id)
    assert "Luna, merge 1" in page("3_Merge.py")
    assert "Luna, merge 1" in page("4_Compare.py")


def _neither_home_needs_the_other(spec: TuneSpec, out: Path) -> None:
    """And nothing is done twice."""
    card = fsio.read_json(out / "scorecard.json")
    shutil.rmtree(out / "merged")
    (out / "scorecard.json").unlink()
    before = {s.id for s in api.list_runs()}
    assert tune(spec, out, resume=True) == card
    assert (out / "merged" / "model.safetensors").is_file()
    assert {s.id for s in api.list_runs()} == before
    for summary in api.list_runs():
        api.delete(api.open_run(summary.id))
    store.delete("luna")
    assert (out / "merged" / "model.safetensors").is_file()
    assert (out / "dataset" / "train.jsonl").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupted_training_goes_on_from_its_checkpoint(
    workspace: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The terminal dies in the middle of training: the command is killed, its run stopped."""
    out = tmp_path / "out"
    spec = spec_of(
        tiny_llama,
        training={"steps": 400, "checkpoint_every": 2, "warmup_steps": 1, "lora_r": 4},
    )
    fsio.write_json(tmp_path / "spec.json", spec.to_dict())
    code = (
        "import json,sys; from pathlib import Path; from core.pipeline.tune import tune; "
        "from core.pipeline.stages import TuneSpec; "
        f"tune(TuneSpec(**json.loads(Path({str(tmp_path / 'spec.json')!r}).read_text())), "
        f"Path({str(out)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, stderr=subprocess.DEVNULL)
    until(lambda: [s for s in api.list_runs() if s.kind == "train" and s.progress.done > 4], 240)
    os.kill(process.pid, signal.SIGINT)
    process.wait(60)
    (stopped,) = [s for s in api.list_runs() if s.kind == "train"]
    assert stopped.state is State.STOPPED
    with pytest.raises(UserError, match="different: training"):
        tune(spec_of(tiny_llama), out, resume=True)
    # Enough was seen of training: what counts is where the second try begins.
    begun: list[str] = []
    monkeypatch.setattr(api, "finish", lambda run, _: begun.append(run.root.name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tune(spec, out, resume=True)
    (resumed,) = begun
    run = api.open_run(resumed)
    params = api.read_spec(run).params
    assert api.read_spec(run).parent == stopped.id
    assert Path(params["resume_from"]).parent == stopped.root / "work"
    api.stop(run, force=True)


def test_what_cannot_work_is_said_before_anything_is_made(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UserError, match="holds no tune to resume"):
        prepare(spec_of(tiny_llama), out, resume=True)
    with pytest.raises(UserError):
        prepare(spec_of(tmp_path / "nowhere"), out, resume=False)
    assert not out.exists()
    prepare(spec_of(tiny_llama), out, resume=False)
    with pytest.raises(UserError, match="exists"):
        prepare(spec_of(tiny_llama), out, resume=False)
    with pytest.raises(UserError, match="different: seed"):
        prepare(spec_of(tiny_llama, seed=3), out, resume=True)
    assert cli.main(["tune", ASSISTANT, "--resume"]) == 2
