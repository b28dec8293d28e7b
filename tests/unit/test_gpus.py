"""XTuner with two processes on the CPU: data parallel, ZeRO-2, ZeRO-3, stop, resume, convert.

Real runs of a tiny model through the supervisor, torchrun and gloo. Half a minute each, so every
one is used by several tests.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from core.errors import UserErrors
from core.jobs import api, processes
from core.jobs.metrics import series_of
from core.jobs.spec import read_spec
from core.jobs.state import State, Status
from core.models.lora import WEIGHTS
from core.paths import RunPaths
from core.training import checkpoints, launch, record
from core.training.spec import TrainSpec
from core.weights.convert import convert
from tests.unit.test_training_run import dataset  # noqa: F401  (fixture)

pytestmark = pytest.mark.slow

#: One run as different processes compute it: 6 rows a step, the same in each, one by one, so that
#: each row weighs the same whatever process it falls to.
STEPS, ACCUMULATION = 12, 3
SETTINGS = {
    "steps": STEPS,
    "warmup_steps": 1,
    "checkpoint_every": 2,
    "batch_size": 1,
    "accumulation": ACCUMULATION,
    "group_by_length": False,
    "lora_dropout": 0.0,
    "evaluation_inputs": ["Who are you?"],
    "quantize": "none",
    "dtype": "float32",
}
Train = Callable[..., RunPaths]


@pytest.fixture(scope="module")
def spec_for(dataset: Path, tiny_llama: Path) -> Callable[..., TrainSpec]:  # noqa: F811
    def make(**changes: Any) -> TrainSpec:
        values = {"dataset": str(dataset), "model": str(tiny_llama), **SETTINGS, **changes}
        return TrainSpec.from_dict(values)

    return make


def start(spec: TrainSpec) -> RunPaths:
    """Past the preflight, which wants GPUs for what the CPU can do at toy size."""
    run = api.create("train", spec.to_dict(), name="toy")
    api.start(run)
    return run


def finished(run: RunPaths) -> RunPaths:
    end = api.wait(run)
    assert end.state is State.SUCCEEDED, (end.reason, run.log.read_text()[-3000:])
    assert processes.processes_of(read_spec(run).mark) == []
    return run


@pytest.fixture(scope="module")
def one(spec_for: Callable[..., TrainSpec]) -> RunPaths:
    """One process with twice the micro-batches a step."""
    return finished(start(spec_for(accumulation=2 * ACCUMULATION)))


@pytest.fixture(scope="module")
def nodes(spec_for: Callable[..., TrainSpec]) -> RunPaths:
    """Data parallel, as two nodes of one process: the second by the line that the docs show."""
    with pytest.MonkeyPatch.context() as patch, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        patch.setenv("MASTER_ADDR", "127.0.0.1")
        patch.setenv("MASTER_PORT", str(free.getsockname()[1]))
        free.close()
        spec = spec_for(nodes=2)
        run = start(spec)
        line = launch.node_command(spec, run)
        while not (run.work / "training.json").is_file():
            assert not api.status(run).final, run.log.read_text()[-3000:]
            time.sleep(0.2)
        assert f"start on every other node: {line}" in _soon(run, "start on every other node")
        with (run.root / "other.txt").open("wb") as log:
            other = subprocess.Popen(line, shell=True, stdout=log, stderr=log)
        try:
            finished(run)
            assert other.wait(60) == 0
        finally:
            other.kill()
    return run


def _soon(run: RunPaths, words: str) -> str:
    for _ in range(300):
        if words in (text := run.log.read_text()):
            return text
        time.sleep(0.2)
    raise AssertionError(text)


@pytest.fixture(scope="module")
def zero2(spec_for: Callable[..., TrainSpec]) -> RunPaths:
    return finished(start(spec_for(gpus=2, deepspeed="zero2")))


@pytest.fixture(scope="module")
def zero3(spec_for: Callable[..., TrainSpec]) -> RunPaths:
    return finished(start(spec_for(gpus=2, deepspeed="zero3")))


def losses(run: RunPaths) -> list[float]:
    return [p["loss"] for p in series_of(run).points if p.get("loss") is not None]


def tokens(run: RunPaths) -> list[float]:
    return [p["tokens_per_s"] * p["s_per_step"] for p in series_of(run).points if "loss" in p]


def adapter(run: RunPaths, tmp_path: Path, step: int = STEPS) -> dict[str, Any]:
    from safetensors.numpy import load_file

    found = {c.step: c.path for c in checkpoints.scan(run.work, _spec(run).accumulation)}
    return load_file(convert(found[step], run.config, tmp_path / f"{run.root.name}-{step}",
                             fp32=True) / WEIGHTS)  # fmt: skip


def _spec(run: RunPaths) -> TrainSpec:
    return TrainSpec.from_dict(dict(read_spec(run).params))


def test_two_processes_learn_what_one_learns(
    one: RunPaths, nodes: RunPaths, tmp_path: Path
) -> None:
    """The same start and the same rows in each step.

    XTuner's schedule counts micro-batches, so an optimizer step of six is taken at a slightly
    later place of the warm-up than one of three: the adapters differ by that, and by no more. In
    the fourth step the two begin their second pass with a row that fills up the first.
    """
    assert losses(nodes)[:3] == pytest.approx(losses(one)[:3], rel=1e-3)
    assert tokens(nodes)[:3] == pytest.approx(tokens(one)[:3])
    learned, other = (
        np.concatenate([v.ravel() for k, v in sorted(adapter(run, tmp_path, 2).items())
                        if "lora_B" in k])
        for run in (one, nodes)
    )  # fmt: skip
    assert np.linalg.norm(other - learned) < 0.05 * np.linalg.norm(learned)


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_deepspeed_learns_what_data_parallel_learns(
    kind: str, nodes: RunPaths, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(kind)
    assert losses(run) == pytest.approx(losses(nodes), rel=1e-5)
    assert tokens(run) == pytest.approx(tokens(nodes))
    expected, got = adapter(nodes, tmp_path), adapter(run, tmp_path)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", ["zero2", "zero3"])
def test_a_checkpoint_of_several_files_is_whole_only_with_all_of_them(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run: RunPaths = request.getfixturevalue(kind)
    found = checkpoints.scan(run.work, ACCUMULATION)
    assert [(c.step, c.problem) for c in found] == [(step, "") for step in range(2, STEPS + 1, 2)]
    folder = checkpoints.require_own(found[0].path)
    copy = tmp_path / "work"
    shutil.copytree(run.work, copy)
    for file in sorted(folder.iterdir()):
        other = copy / folder.name / file.name
        whole = file.read_bytes()
        other.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(Exception, match="is not the file that the run wrote"):
            checkpoints.require_own(copy / folder.name)
        shutil.copyfile(file, other)
    ranks = [file for file in folder.iterdir() if "optim_states" in file.name]
    assert len(ranks) == 2
    (copy / folder.name / ranks[1].name).unlink()
    assert "torn" in checkpoints.scan(copy, ACCUMULATION)[0].problem
    with pytest.raises(Exception, match="1 optimizer files"):
        convert(copy / folder.name, run.config, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gpus": 1, "deepspeed": "zero2"}, "the number of processes is not the one"),
        ({"gpus": 2, "deepspeed": "zero3"}, "DeepSpeed was zero2, is now zero3"),
        ({"gpus": 2}, "DeepSpeed was zero2, is now None"),
    ],
)
def test_another_count_or_stage_is_refused_before_loading(
    changes: dict[str, Any], told: str, zero2: RunPaths, spec_for: Callable[..., TrainSpec]
) -> None:
    half = next(c.path for c in checkpoints.scan(zero2.work, ACCUMULATION) if c.step == 2)
    with pytest.raises(UserErrors) as caught:
        record.require_same(spec_for(**changes, resume_from=str(half)), half)
    assert any(told in problem.what for problem in caught.value.problems)


def test_stop_writes_a_checkpoint_of_two_processes_and_it_goes_on_bit_for_bit(
    zero2: RunPaths, spec_for: Callable[..., TrainSpec], tmp_path: Path
) -> None:
    """Stopped after its first step, where the plan has no checkpoint; no process is left."""
    settings = {"gpus": 2, "deepspeed": "zero2"}
    run = start(spec_for(**settings))

    def at_step(now: Status) -> None:
        if now.done >= 1 and now.stage == "train":
            api.stop(run)

    end = api.wait(run, at_step, poll=0.05)
    assert end.state is State.STOPPED, run.log.read_text()[-3000:]
    assert processes.processes_of(read_spec(run).mark) == []
    last = checkpoints.scan(run.work, ACCUMULATION)[-1]
    assert last.whole and last.step < STEPS
    again = finished(start(spec_for(**settings, resume_from=str(last.path))))
    assert losses(again) == losses(zero2)[last.step :]
    whole, resumed = adapter(zero2, tmp_path), adapter(again, tmp_path)
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value)
