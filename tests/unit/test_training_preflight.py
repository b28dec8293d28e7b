"""What is said before Start: counts, estimates, every problem at once."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, get_args

import pytest

from core import fsio
from core.conversation import Conversation
from core.errors import UserError, UserErrors
from core.models.device import Choice, Device
from core.training import cost, deepspeed, entry, fit, launch, rows
from core.training.defaults import choose
from core.training.preflight import preflight
from core.training.spec import DeepSpeed, TrainSpec

CPU = Device("cpu", "test CPU", 1, 8 * 2**30, 2, Choice("dtype", "float32", "test"))
GPUS = Device("cuda", "test GPU", 2, 80 * 2**30, 8, Choice("dtype", "bfloat16", "test"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [
        Conversation(
            f"r{i}",
            [
                {"role": "user", "content": f"Question {i}?"},
                {"role": "assistant", "content": "word " * (1 + i) + "end"},
            ],
        )
        for i in range(40)
    ]
    fsio.write_jsonl(tmp_path / "data" / "train.jsonl", (row.to_row() for row in rows))
    return tmp_path / "data"


def test_counts_are_exact_and_estimates_name_their_basis(dataset: Path, tiny_llama: Path) -> None:
    spec = TrainSpec(
        dataset=str(dataset),
        model=str(tiny_llama),
        steps=10,
        warmup_steps=1,
        batch_size=8,
        accumulation=2,
        max_length=32,
    )
    report = preflight(spec, CPU)
    assert report.problems == []
    assert report.template_parity
    assert (report.rows, report.steps) == (40, 10)
    assert report.exposures == pytest.approx(10 * 16 / 40)
    assert report.tokens_kept > 0 and report.tokens_dropped > 0
    assert report.rows_cut == sum("lose their tail" in w for w in report.warnings) * report.rows_cut
    for estimate in (report.memory, report.seconds, report.disk):
        assert estimate is not None and estimate.value > 0 and estimate.basis


def test_every_problem_is_listed_at_once(tmp_path: Path, tiny_llama: Path) -> None:
    spec = TrainSpec(
        dataset=str(tmp_path / "none"),
        model=str(tmp_path / "nowhere"),
        steps=2,
        warmup_steps=2,
        dtype="float16",
        deepspeed="zero2",
        gpus=4,
        stock_config="no_such",
        resume_from=str(tmp_path / "iter_4.pth"),
    )
    report = preflight(spec, CPU)
    text = "\n".join(map(str, report.problems))
    for word in (
        "learning rate",
        "warm-up",
        "float16",
        "DeepSpeed",
        "4 GPUs",
        "no_such",
        "train.jsonl",
        "nowhere",
        "iter_4.pth",
    ):
        assert word in text, word
    with pytest.raises(UserErrors):
        report.check()


def test_rows_that_xtuner_would_encode_differently_are_named(
    tmp_path: Path, tiny_llama: Path
) -> None:
    rows = [
        Conversation(
            "good", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        ),
        Conversation(
            "edge", [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "  Hello"}]
        ),
    ]
    fsio.write_jsonl(tmp_path / "train.jsonl", (row.to_row() for row in rows))
    report = preflight(TrainSpec(dataset=str(tmp_path), model=str(tiny_llama)), CPU)
    assert not report.template_parity
    assert "'edge'" in str(report.problems[0])


def test_a_run_that_does_not_fit_says_what_would(dataset: Path, tiny_llama: Path) -> None:
    """The way out is tried; where no setting helps, the model is too large for the device."""
    spec = TrainSpec(dataset=str(dataset), model=str(tiny_llama), dtype="float32")
    shape = cost.shape_of(tiny_llama)
    longest = preflight(spec, CPU).memory
    assert longest is not None
    tight = Device("cpu", "tight", 1, int(longest.value) - 1, 2, CPU.compute_dtype)
    (problem,) = preflight(spec, tight).problems
    assert problem.fix == "one row a micro-batch, the base not held, activations recomputed"
    changed = spec.changed(batch_size=1, hold_weights=False, activation_checkpointing=True)
    assert not preflight(changed, tight).problems
    least = Device("cpu", "least", 1, cost.peak_bytes(shape, changed, 0) - 1, 2, CPU.compute_dtype)
    (problem,) = preflight(spec, least).problems
    assert str(problem.fix).startswith("a smaller model: this one takes")


@pytest.mark.parametrize("gigabytes", [8, 16, 24, 80])
@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_what_is_proposed_fits(gigabytes: int, kind: Any) -> None:
    """For InternLM2-1.8B's shape and rows of 60 to 600 tokens, on a GPU; on a CPU for 0.5B."""
    lengths = list(range(60, 601, 20))
    stats = rows.RowStats(len(lengths), sum(lengths), sum(lengths), 0, 0, 0, lengths)
    dtype = "float32" if kind == "cpu" else "bfloat16"
    device = Device(kind, "x", 1, gigabytes * 10**9, 2, Choice("dtype", dtype, ""))
    shape = cost.Shape(2048, 24, 8192, 92544, 16, 8, False)
    if kind == "cpu":
        shape = cost.Shape(896, 24, 4864, 151936, 14, 2, True)
    proposed = fit.Fit(device, shape, stats, {"dtype": dtype})
    proposed.settings["hold_weights"], _ = proposed.hold()
    batch, _ = proposed.batch()
    above, _ = proposed.recompute(batch)
    length, _ = proposed.length()
    spec = TrainSpec.from_dict(
        {"dataset": "", **proposed.settings, "batch_size": batch, "recompute_above": above,
         "max_length": length}
    )  # fmt: skip
    assert length >= 600
    assert cost.memory_bytes(shape, spec, 600) <= cost.usable_bytes(device) * 1.001
    if gigabytes >= 24:
        assert spec.hold_weights
        assert batch == 16 or kind == "cpu"


def test_memory_and_disk_that_do_not_suffice_are_problems(
    dataset: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Device("cpu", "small", 1, 2**29, 2, CPU.compute_dtype)
    monkeypatch.setattr(fsio, "free_bytes", lambda path: 1000)
    report = preflight(TrainSpec(dataset=str(dataset), model=str(tiny_llama)), small)
    text = "\n".join(map(str, report.problems))
    assert "does not fit in memory" in text
    assert "not enough disk space" in text


def test_auto_explains_every_choice_and_keeps_overrides(dataset: Path, tiny_llama: Path) -> None:
    spec, choices = choose(str(dataset), str(tiny_llama), CPU, {"steps": 33, "lora_r": 4})
    by_name = {choice.name: choice for choice in choices}
    assert (spec.steps, spec.lora_r) == (33, 4)
    assert by_name["steps"].reason == "set by you"
    assert all(choice.reason for choice in choices)
    assert spec.rows_per_step == 16
    spec.check()
    on_gpu, _ = choose(str(dataset), str(tiny_llama), GPUS)
    assert on_gpu.dtype == "bfloat16"


def test_auto_recomputes_activations_where_memory_is_short(dataset: Path, tiny_llama: Path) -> None:
    tight = Device("cpu", "tight", 1, 2**30, 2, CPU.compute_dtype)
    spec, choices = choose(str(dataset), str(tiny_llama), tight)
    assert spec.batch_size * spec.accumulation == 16
    assert spec.batch_size < 8 or spec.recompute_above
    assert {choice.name for choice in choices} >= {"batch_size", "recompute_above"}


def test_step_is_chosen_for_the_device_and_says_why(
    dataset: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.training import defaults

    monkeypatch.setattr(defaults, "cpu_has_bf16", lambda: True)
    for gain, dtype in ((2.0, "bfloat16"), (1.1, "float32")):
        monkeypatch.setattr(defaults, "bf16_gain", lambda gain=gain: gain)
        spec, _ = choose(str(dataset), str(tiny_llama), CPU)
        assert spec.dtype == dtype
    assert spec.hold_weights and spec.fused_step and spec.pack_rows and not spec.compile_step
    assert spec.group_by_length
    on_gpu, choices = choose(str(dataset), str(tiny_llama), GPUS)
    assert not on_gpu.group_by_length
    reasons = {choice.name: choice.reason for choice in choices}
    assert "dequantized once" in reasons["hold_weights"]
    full = Device("cpu", "full", 1, 2**30, 2, CPU.compute_dtype)
    spec, choices = choose(str(dataset), str(tiny_llama), full)
    assert not spec.hold_weights
    assert "too little memory" in {c.name: c.reason for c in choices}["hold_weights"]


def test_recomputing_long_micro_batches_alone_bounds_memory() -> None:
    shape = cost.Shape(576, 30, 1536, 49152, 9, 3, True)  # SmolLM2-135M
    plain = TrainSpec(dataset="d", batch_size=8, fused_step=False, hold_weights=False)
    capped = plain.model_copy(update={"recompute_above": 1000})
    assert cost.memory_bytes(shape, capped, 60) == cost.memory_bytes(shape, plain, 60)
    assert cost.memory_bytes(shape, capped, 320) < 4.9e9 < cost.memory_bytes(shape, plain, 320)
    capacity = cost.token_capacity(shape, plain, cost.CPU_BYTES)
    assert 800 < capacity < 1300


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_said_to_fit_fits_to_the_token(dtype: str) -> None:
    """Logits grow up to a chunk, activations without end: no one slope serves both."""
    shape = cost.Shape(896, 24, 4864, 151936, 14, 2, True)  # Qwen2.5-0.5B
    spec = TrainSpec.from_dict({"dataset": "d", "dtype": dtype})
    for room in (4e9, 6e9, 20e9):
        capacity = cost.token_capacity(shape, spec, room)
        fits = cost.peak_bytes(shape, spec, capacity) if capacity else 0
        assert fits <= room < cost.peak_bytes(shape, spec, capacity + 1) + 1


def test_a_chunk_of_logits_is_counted() -> None:
    """Measured: SmolLM2-135M, 1,052 tokens in float32, 3.20 GiB (docs/results/memory.md)."""
    shape = cost.Shape(576, 30, 1536, 49152, 9, 3, True)
    spec = TrainSpec.from_dict({"dataset": "d", "dtype": "float32"})
    assert cost.peak_bytes(shape, spec, 1052) == pytest.approx(3.20 * 2**30, rel=0.15)


def test_deepspeed_is_off_without_a_gpu_and_says_why() -> None:
    assert "no GPU" in deepspeed.unavailable(CPU)
    assert deepspeed.unavailable(GPUS) == ""


@pytest.mark.parametrize("stage", get_args(DeepSpeed))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_deepspeed_computes_in_the_type_of_the_form(stage: Any, dtype: Any, tmp_path: Path) -> None:
    spec = TrainSpec(dataset="d", deepspeed=stage, dtype=dtype)
    deepspeed.write(spec, tmp_path)
    argv = entry.xtuner_argv(spec, Path("c.py"), tmp_path)
    settings = fsio.read_json(Path(argv[argv.index("--deepspeed") + 1]))
    assert settings["zero_optimization"]["stage"] == int(stage[4])
    assert settings["bf16"]["enabled"] is (dtype == "bfloat16")
    assert settings["fp16"]["enabled"] is (dtype == "float16")


def test_commands_of_one_gpu_several_gpus_and_nodes(tmp_path: Path) -> None:
    from core.paths import RunPaths

    run = RunPaths(tmp_path)
    spec = TrainSpec(dataset="d", deepspeed="zero2", gpus=2, nodes=2)
    argv = entry.xtuner_argv(spec, run.config, run.work)
    assert argv[argv.index("--launcher") + 1] == "pytorch"
    line = launch.torchrun_argv(spec, run)
    assert "--nproc_per_node=2" in line and "--nnodes=2" in line
    assert line[-3:] == ["-m", "core.training.entry", str(tmp_path)]
    assert launch.node_command(spec, run).endswith(shlex.join(line))  # the same on every node
    assert "--standalone" in launch.torchrun_argv(TrainSpec(dataset="d", gpus=2), run)


def test_all_gpus_share_the_rows_of_a_step(dataset: Path, tiny_llama: Path) -> None:
    two = GPUS
    spec, choices = choose(str(dataset), str(tiny_llama), two)
    assert (spec.gpus, spec.batch_size, spec.rows_per_step) == (2, 8, fit.ROWS_PER_STEP)
    assert any(c.name == "gpus" and c.reason.startswith("all of this machine") for c in choices)
    alone, _ = choose(str(dataset), str(tiny_llama), two, {"gpus": 1})
    assert (alone.gpus, alone.batch_size, alone.steps) == (1, 16, spec.steps)
    sharded = {"nodes": 2, "deepspeed": "zero2"}
    many, _ = choose(str(dataset), str(tiny_llama), two, sharded)
    assert many.batch_size == 4
    with pytest.raises(UserError, match="a whole number"):
        choose(str(dataset), str(tiny_llama), two, {"gpus": "two"})
    basis = preflight(spec, two).memory
    assert basis is not None and basis.basis.startswith("on each of 2 GPUs")


def test_memory_of_each_gpu_falls_with_the_stage() -> None:
    """7B with rank 64: 16-bit base 13 GB, adapter 160 M parameters."""
    shape = cost.Shape(4096, 32, 11008, 32000, 32, 32, False)
    fixed = {"dataset": "d", "dtype": "bfloat16", "quantize": "none", "gpus": 4}
    needed = [
        cost.peak_bytes(shape, TrainSpec.from_dict({**fixed, "deepspeed": stage}), 0)
        for stage in ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload")
    ]
    assert needed == sorted(needed, reverse=True)
    assert needed[0] - needed[3] > 0.7 * 2 * shape.parameters
    lora = shape.lora(64)
    assert needed[0] - needed[1] == pytest.approx(lora * 2 * 3 / 4, rel=1e-6)  # gradients
