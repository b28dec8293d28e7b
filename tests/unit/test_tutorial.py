"""The guide: both languages hold the same commands, and every command works on a tiny InternLM2."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from core import fsio, paths
from core.commands import evaluation, follow, weights
from core.commands import main as cli
from core.jobs import api
from core.jobs.kinds import kind_of
from core.jobs.state import State
from core.models import device
from core.paths import REPO, RunPaths
from core.records import JobSpec
from tests.fakes import tiny_internlm2 as tiny
from tests.faults.support import until

GUIDE = REPO / "docs" / "tutorial.md"
CHINESE = REPO / "docs" / "tutorial.zh.md"
#: What stands for what at toy size; each must be found.
TOY = {
    "/models/internlm2-chat-1_8b": "models/internlm2-chat-tiny",
    # A model of random weights has no replies to rehearse.
    "--out luna/dataset": "--out luna/dataset --max-rows 24 --rehearsal-ratio 0 "
    "--near-miss-ratio 0",
    # Few tokens: each costs a row of 92,544 logits.
    "--set checkpoint_every=15": "--set checkpoint_every=2 --set batch_size=2 "
    "--set accumulation=1 --set lora_r=8 --set lora_alpha=16",
    "--set steps=60": "--set steps=8",
    "--prompt": "--max-new-tokens 8 --prompt",
    "core chat": "core chat --max-new-tokens 8",
    "--output luna/score": "--output luna/score --size smoke",
}


def blocks(guide: Path) -> list[tuple[str, str]]:
    """(words behind ``bash``, commands) of each block of commands."""
    return re.findall(r"^```bash *(.*?)\n(.*?)^```$", guide.read_text("utf-8"), re.M | re.S)


def test_both_languages_hold_the_same_commands() -> None:
    assert blocks(GUIDE) == blocks(CHINESE)
    assert len(blocks(GUIDE)) > 10


def test_every_heading_and_table_row_has_its_counterpart() -> None:
    def shape(guide: Path) -> list[str]:
        lines = guide.read_text("utf-8").splitlines()
        return [m[0] for line in lines if (m := re.match(r"#+ (\d+)?|\|", line))]

    assert shape(GUIDE) == shape(CHINESE)


@dataclass
class Shell:
    """A shell of a few lines: our own commands run in this process, others in bash."""

    capsys: pytest.CaptureFixture[str]
    said: dict[str, str] = field(default_factory=dict)

    def run(self, command: str) -> int:
        """The command's exit status; what it said is kept."""
        if found := re.fullmatch(r"(?:export )?([A-Z]+)=(.*)", command):
            value = self._bash(f'printf %s "{found[2]}"')
            os.environ[found[1]] = value
            return 0
        before, _, ours = command.rpartition("python -m core ")
        if not ours or "\n" in command:
            self._bash(command)
            return 0
        line, _, target = os.path.expandvars(ours).partition(" > ")
        stdin = io.StringIO(self._bash(before.rstrip(" |"))) if before else sys.stdin
        old, sys.stdin = sys.stdin, stdin
        try:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = cli.main(shlex.split(line))
        finally:
            sys.stdin = old
        if target:
            Path(target).write_text(out.getvalue(), encoding="utf-8")
        self.said[command] = out.getvalue() + "".join(self.capsys.readouterr())
        return code

    @staticmethod
    def _bash(command: str) -> str:
        done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, check=True)
        return done.stdout


def commands(text: str) -> list[str]:
    """The commands of a block; a here-document belongs to its command."""
    return re.findall(r"^.*<<'EOF'\n(?:.*\n)*?EOF$|^.+$", text, re.M)


def at_toy_size(text: str) -> str:
    for ours, toy in TOY.items():
        text = text.replace(ours, toy)
    return text


def here(spec: JobSpec, name: str, **_: object) -> dict[str, object]:
    """A job in this process: only trainings, which are stopped and resumed, get their own."""
    work = kind_of(spec.job).work
    work.check(spec)
    run = RunPaths(paths.runs_dir() / f"{spec.job}-{fsio.slug(name)}-here")
    run.root.mkdir(parents=True)
    result: dict[str, object] = work.run(spec, run, lambda *done: None)
    return result


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    monkeypatch.chdir(tmp_path)
    for place in (follow, weights, evaluation):
        monkeypatch.setattr(place, "complete", here)
    for name in ("BASE", "RUN", "CHECKPOINT"):
        monkeypatch.setenv(name, "")
    return Shell(capsys)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_guide_works(shell: Shell, tmp_path: Path) -> None:
    tiny.save(tmp_path / "models" / "internlm2-chat-tiny")
    whole = "".join(text for _, text in blocks(GUIDE))
    assert all(ours in whole for ours in TOY)
    for kind, text in blocks(GUIDE):
        for command in commands(at_toy_size(text)):
            if command.endswith("stop latest"):
                run = api.open_run("latest")
                until(lambda run=run: list(run.work.glob("iter_*.pth")), 240)  # type: ignore[misc]
            code = shell.run(command)
            if kind == "gpu" and device.describe().kind == "cpu":
                assert code == 2 and "no GPU was found" in shell.said[command]
            else:
                assert code == 0 or (kind == "check" and code == 1), (command, shell.said)
    _look_at_what_was_made(shell, tmp_path)


def _look_at_what_was_made(shell: Shell, home: Path) -> None:
    states = {s.id: s.state for s in api.list_runs() if s.kind == "train"}
    assert sorted(states.values()) == [State.STOPPED, State.SUCCEEDED]
    config = (home / "luna" / "config.py").read_text()
    assert re.findall(r"PART \d", config) == [f"PART {n}" for n in range(1, 6)]
    assert "internlm2-chat-tiny" in config
    said = "".join(shell.said.values())
    assert "internlm2_chat_1_8b_qlora_alpaca_e3" in said and "proved: 24 prompts" in said
    merged = home / "luna" / "merged"
    assert {p.name for p in (home / "models" / "internlm2-chat-tiny").iterdir()} <= {
        p.name for p in merged.iterdir()
    }
    assert tiny.reopen(merged) is not None  # published names: they load in InternLM's own code
    assert "<|im_end|>" in (home / "luna" / "ollama" / "Modelfile").read_text()
    assert (home / "luna" / "gguf" / "model-q8_0.gguf").is_file()
    assert fsio.read_json(home / "luna" / "score" / "scorecard.json")["verdict"]
