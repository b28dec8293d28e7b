"""Log text of failed runs -> one reason, a cause, fixes that give a startable spec."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.jobs import reasons
from core.jobs.reasons import TAIL, Fault
from core.jobs.spec import RunSpec
from core.paths import RunPaths
from core.training.faults import of_run, table
from core.training.spec import DEFAULT_CONFIG, TrainSpec

pytestmark = pytest.mark.fast


def diagnose(text: str, spec: TrainSpec | None = None, code: int | None = None) -> Fault:
    return reasons.diagnose(
        table(spec or TrainSpec(dataset="d"), resumable=True), text, returncode=code
    )


CASES = [
    ("oom_gpu", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."),
    ("oom_gpu", "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ("oom_host", "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you"),
    ("oom_host", "terminate called after throwing an instance of 'std::bad_alloc'"),
    ("disk_full", "OSError: [Errno 28] No space left on device"),
    ("diverged", "the loss is not a number for 3 steps, up to step 9"),
    ("diverged", "training diverged: the loss rose from 3 to 85 by step 14"),
    ("collapsed", "the model collapsed: at step 30 it finds the base's own replies 99 times"),
    ("no_gpu", "RuntimeError: Found no NVIDIA driver on your system."),
    ("no_gpu", "AssertionError: Torch not compiled with CUDA enabled"),
    ("killed_signal", "[rank0]:[E] Watchdog caught collective operation timeout: WorkNCCL"),
    ("import_error", "huggingface_hub.errors.GatedRepoError: 401 Client Error."),
    ("import_error", "OfflineModeIsEnabled: Cannot reach https://huggingface.co"),
    ("import_error", "ModuleNotFoundError: No module named 'bitsandbytes'"),
    ("bad_config", "KeyError: 'NoSuchHook is not in the mmengine::hook registry.'"),
    ("bad_config", "TypeError: LoraConfig.__init__() got an unexpected keyword argument 'rank'"),
    ("bad_config", "OSError: [Errno 98] Address already in use"),
    ("bad_config", "ImportError: Failed to import NoSuchHook from xtuner.engine.hooks in c.py"),
    ("bad_data", "FileNotFoundError: Unable to find '/data/train.jsonl'"),
    ("bad_config", "OSError: Can't load the configuration of '/models/gone'."),
    ("bad_data", "datasets.exceptions.DatasetGenerationError: An error occurred"),
    ("incomplete", "training ended without its last checkpoint (step 120)"),
]


@pytest.mark.parametrize(("reason", "line"), CASES)
def test_log_line_gives_the_reason_and_three_fixes(reason: str, line: str) -> None:
    text = f"step 1\nTraceback (most recent call last):\n  File x\n{line}\nbye\n"
    fault = diagnose(text, code=1)
    assert fault.reason == reason
    assert fault.line == line
    assert len(fault.fixes) >= 2
    assert fault.cause.endswith(".")


@pytest.mark.parametrize(("reason", "line"), CASES)
def test_every_fix_gives_a_spec_that_can_start(reason: str, line: str) -> None:
    spec = TrainSpec(
        dataset="d",
        batch_size=5,
        quantize="none",
        dtype="float16",
        deepspeed="zero3",
        stock_config="qwen_7b_qlora_alpaca_e3",
        config_text="x = 1",
    )
    for fix in diagnose(line, spec).fixes:
        TrainSpec.from_dict({**spec.to_dict(), **fix.overrides}).check()


def test_memory_fix_keeps_the_rows_behind_a_step() -> None:
    spec = TrainSpec(dataset="d", batch_size=16, accumulation=1)
    first = diagnose("CUDA out of memory", spec).fixes[0]
    smaller = TrainSpec.from_dict({**spec.to_dict(), **first.overrides})
    assert smaller.rows_per_step == spec.rows_per_step
    assert smaller.batch_size < spec.batch_size


def test_config_fix_goes_back_to_the_form_and_the_stock_file() -> None:
    spec = TrainSpec(dataset="d", stock_config="qwen_7b_qlora_alpaca_e3", config_text="x = 1")
    fixes = diagnose("NameError: name 'foo' is not defined", spec).fixes
    assert fixes[0].overrides == {"config_text": None}
    assert fixes[1].overrides == {"stock_config": DEFAULT_CONFIG}


@pytest.mark.parametrize(
    ("code", "reason"),
    [(-9, "oom_host"), (-15, "killed_signal"), (0, "incomplete"), (1, "incomplete")],
)
def test_silent_ends_are_told_apart_by_the_exit(code: int, reason: str) -> None:
    assert diagnose("all fine\n", code=code).reason == reason


def test_only_the_tail_counts() -> None:
    assert diagnose("CUDA out of memory\n" + "x" * TAIL, code=1).reason == "incomplete"


@pytest.mark.parametrize("text", ["training ended without its last checkpoint (step 9)", "bye"])
@pytest.mark.parametrize("code", [1, -15])
def test_resuming_is_advised_only_where_it_can_be_done(text: str, code: int) -> None:
    for resumable in (True, False):
        rules = table(TrainSpec(dataset="d"), resumable=resumable)
        fault = reasons.diagnose(rules, text, returncode=code)
        assert any("resume" in fix.label for fix in fault.fixes) is resumable


def test_a_run_of_another_version_or_without_checkpoints_gets_fixes_too(tmp_path: Path) -> None:
    for params in ({"speed": 3}, TrainSpec(dataset="d").to_dict()):
        found = reasons.diagnose(of_run(params, RunPaths(tmp_path)), "bye", returncode=1)
        assert found.fixes and not any("resume" in fix.label for fix in found.fixes)


@pytest.mark.parametrize("kind", ["merge", "generate", "evaluate"])
def test_other_jobs_get_no_training_advice(kind: str, tmp_path: Path) -> None:
    rules = reasons.table_of(RunSpec(kind=kind, name="x", params={}, seq=1), RunPaths(tmp_path))
    fault = reasons.diagnose(rules, "CUDA out of memory", returncode=1)
    assert fault.reason == "oom_gpu"
    assert not any(fix.overrides for fix in fault.fixes)
