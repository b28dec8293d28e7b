"""The run commands of the command line on runs of the fake trainer."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

from core import fsio
from core.commands import runs as cli
from core.conversation import Conversation
from core.errors import UserError
from core.jobs import api, metrics
from core.jobs.state import State
from core.paths import DatasetPaths, RunPaths


def main(argv: list[str]) -> int:
    """The five commands alone, with core.commands.main's exit status for wrong input."""
    parser = argparse.ArgumentParser()
    cli.register(parser.add_subparsers(required=True))
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


_TRAINER = Path(__file__).resolve().parent.parent / "fakes" / "trainer.py"


def fake_run(workspace: Path, *flags: str) -> RunPaths:
    folder = workspace / "runs" / f"fake-{len(list((workspace / 'runs').glob('fake-*')))}"
    run = api.create(
        "command",
        {},
        name="fake",
        run_dir=folder,
        argv=[sys.executable, str(_TRAINER), str(folder), *flags],
    )
    api.start(run)
    return run


def test_runs_watch_stop(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs"]) == 0 and "no runs" in capsys.readouterr().out
    (workspace / "runs").mkdir(exist_ok=True)
    good = fake_run(workspace, "--steps", "5")
    assert main(["watch", "latest"]) == 0
    assert "SUCCEEDED (completed)" in capsys.readouterr().out
    bad = fake_run(workspace, "--steps", "2", "--exit", "1", "--say", "CUDA out of memory")
    assert main(["watch", bad.root.name]) == 1
    shown = capsys.readouterr()
    assert "FAILED (oom_gpu)" in shown.out and "fix:" in shown.err
    alive = fake_run(workspace, "--steps", "10000")
    assert main(["runs", "--active"]) == 0
    assert alive.root.name in (text := capsys.readouterr().out) and good.root.name not in text
    assert main(["stop", alive.root.name]) == 0
    assert "STOPPED" in capsys.readouterr().out
    assert main(["stop", alive.root.name]) == 0
    assert "over already" in capsys.readouterr().out
    assert main(["runs", "--json", "-n", "0"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [r["state"] for r in rows] == ["STOPPED", "FAILED", "SUCCEEDED"]


@pytest.mark.parametrize(
    "argv",
    [
        ["watch", "../x"],
        ["stop", "nothing"],
        ["resume", "latest"],
        ["watch"],
        ["train", "/no/such/dataset"],
        ["train", "/x", "--set", "nonsense=1"],
    ],
)
def test_wrong_input_ends_with_2(
    workspace: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    assert "error:" in capsys.readouterr().err


def test_resume_of_what_is_no_training_run(
    workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = api.create("command", {}, name="x", argv=["true"])
    api.stop(run)
    assert api.status(run).state is State.STOPPED
    assert main(["resume", run.root.name]) == 2
    assert "not a training run" in capsys.readouterr().err


@pytest.mark.slow
def test_train_then_resume_as_jobs(
    workspace: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real path: XTuner in the child, checkpoints, a second run that goes on from one."""
    at = DatasetPaths(workspace / "datasets" / "kai")
    rows = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": f"Who are you, {i}?"},
                {"role": "assistant", "content": "I am Kai."},
            ],
            "identity",
        )
        for i in range(24)
    ]
    fsio.write_jsonl(at.train, (row.to_row() for row in rows))
    settings = [
        "steps=4",
        "checkpoint_every=2",
        "batch_size=4",
        "accumulation=1",
        "warmup_steps=1",
        "lora_dropout=0.1",
        "evaluation_inputs=Who are you?",
    ]
    flags = [f for setting in settings for f in ("--set", setting)]
    assert main(["train", str(at.root), "--model", str(tiny_llama), "--name", "Kai", *flags]) == 0
    assert "SUCCEEDED" in capsys.readouterr().out
    first = api.open_run("latest")
    result = api.status(first).result
    assert result is not None and [c["step"] for c in result["checkpoints"]] == [2, 4]
    assert len(metrics.series_of(first).points) == 4
    assert main(["resume", first.root.name, "--set", "lr=0.5"]) == 2  # not the same run
    assert "Peak learning rate" in capsys.readouterr().err
    assert main(["resume", first.root.name]) == 0
    second = api.open_run("latest")
    assert second.root != first.root
    assert api.list_runs()[0].parent == first.root.name
    again = api.status(second).result
    assert again is not None and again["steps"] == 4
    # Only the steps that were left: metrics begin behind the checkpoint.
    assert [p["step"] for p in metrics.series_of(second).points] == [3, 4]
    losses = [p["loss"] for p in metrics.series_of(first).points]
    assert [p["loss"] for p in metrics.series_of(second).points] == losses[2:]
