"""The fast converter writes what PEFT itself saves, and what XTuner's converter computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from core import seal
from core.chat.columns import discover
from core.errors import UserError
from core.paths import RunPaths
from core.training import compat
from core.weights import manifest
from core.weights.convert import adapter_key, adapter_of, convert
from core.weights.source import read_config
from core.weights.zero import read_zero
from tests.fakes import tiny_models as tiny


def _run(tmp_path: Path, **lora: Any) -> tuple[Path, Path, Path, Any]:
    """Checkpoint, config, PEFT's own save, the attached model."""
    base = tiny.save_base(tmp_path / "base").path
    extra = "".join(f"{k}={v!r}, " for k, v in lora.items())
    peft = tiny.save_adapter(base, tmp_path / "peft", **lora)
    tiny.save_checkpoint(peft, tmp_path / "run" / "work" / "iter_3.pth")
    tiny.save_config(tmp_path / "run" / "config.py", base, extra=extra)
    seal.seal(tmp_path / "run" / "config.py")
    return tmp_path / "run/work/iter_3.pth", tmp_path / "run/config.py", tmp_path / "peft", peft


VARIANTS = [
    {"target_modules": ["q_proj", "v_proj", "down_proj"]},
    {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    {"target_modules": ["q_proj"], "use_rslora": True, "rank_pattern": {"layers.0.*q_proj": 4}},
    {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    {"target_modules": ["embed_tokens", "o_proj"]},
]


@pytest.mark.parametrize("lora", VARIANTS, ids=lambda v: "-".join(v))
def test_fast_equals_pefts_own_save(tmp_path: Path, lora: dict[str, Any]) -> None:
    from peft import LoraConfig

    checkpoint, config, saved, _ = _run(tmp_path, **lora)
    out = convert(checkpoint, config, tmp_path / "out", fp32=True)
    mine, theirs = (load_file(f / "adapter_model.safetensors") for f in (out, saved))
    # PEFT adds the frozen embedding itself when LoRA is on it; it is the base's and not needed.
    theirs = {k: v for k, v in theirs.items() if "base_layer" not in k}
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    ours, peft = LoraConfig.from_pretrained(out), LoraConfig.from_pretrained(saved)
    for name, value in peft.to_dict().items():
        assert getattr(ours, name) == value, name
    manifest.verify(out)


def test_fast_file_is_byte_for_byte_pefts(tmp_path: Path) -> None:
    checkpoint, config, saved, _ = _run(tmp_path, target_modules=["q_proj", "v_proj"])
    out = convert(checkpoint, config, tmp_path / "out", fp32=True)
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (saved / name).read_bytes()


def test_default_is_float16_and_targets_are_read_off_the_weights(tmp_path: Path) -> None:
    checkpoint, config, saved, _ = _run(tmp_path, target_modules=["q_proj", "up_proj"])
    tiny.save_config(config, tmp_path / "base")  # XTuner's default: no target_modules
    out = convert(checkpoint, config, tmp_path / "out")
    half = load_file(out / "adapter_model.safetensors")
    full = load_file(saved / "adapter_model.safetensors")
    assert all(torch.equal(half[k], full[k].half()) for k in full)
    record = json.loads((out / "adapter_config.json").read_text())
    assert record["target_modules"] == ["q_proj", "up_proj"]
    assert (record["r"], record["lora_alpha"]) == (8, 24)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llm.base_model.model.x.lora_A.default.weight", "base_model.model.x.lora_A.weight"),
        ("base_model.model.x.lora_B.weight", "base_model.model.x.lora_B.weight"),
        ("llm.base_model.model.e.lora_embedding_A.default", "base_model.model.e.lora_embedding_A"),
        (
            "llm.base_model.model.x.lora_magnitude_vector.default.weight",
            "base_model.model.x.lora_magnitude_vector",
        ),
        (
            "llm.base_model.model.lm_head.modules_to_save.default.weight",
            "base_model.model.lm_head.weight",
        ),
        ("llm.base_model.model.x.base_layer.weight", None),
        ("data_preprocessor.mean", None),
    ],
)
def test_keys(name: str, key: str | None) -> None:
    assert adapter_key(name) == key


def test_broken_values_are_refused(tmp_path: Path) -> None:
    checkpoint, config, _, peft = _run(tmp_path, target_modules=["q_proj"])
    weight = next(p for n, p in peft.named_parameters() if "lora_B" in n)
    weight.data[0, 0] = 1e6
    tiny.save_checkpoint(peft, checkpoint)
    with pytest.raises(UserError, match="fp32"):
        convert(checkpoint, config, tmp_path / "out")
    convert(checkpoint, config, tmp_path / "wide", fp32=True)
    weight.data[0, 0] = float("nan")
    tiny.save_checkpoint(peft, checkpoint)
    with pytest.raises(UserError, match="not finite"):
        convert(checkpoint, config, tmp_path / "out", fp32=True)
    assert not (tmp_path / "out").exists()


def test_full_checkpoint_and_other_state_dicts_are_refused(tmp_path: Path) -> None:
    checkpoint, config, *_ = _run(tmp_path, target_modules=["q_proj"])
    torch.save({"state_dict": {"llm.model.x.weight": torch.ones(2)}}, checkpoint)
    with pytest.raises(UserError, match="no LoRA weights"):
        convert(checkpoint, config, tmp_path / "out")
    torch.save([1, 2], checkpoint)
    with pytest.raises(UserError, match="state_dict"):
        convert(checkpoint, config, tmp_path / "out")


def test_xtuner_engine_runs_only_a_config_that_a_run_wrote(tmp_path: Path) -> None:
    checkpoint, config, *_ = _run(tmp_path, target_modules=["q_proj"])
    config.write_text(config.read_text() + "\nimport os\n")
    with pytest.raises(UserError, match="was changed since"):
        convert(checkpoint, config, tmp_path / "out", engine="xtuner")
    with pytest.raises(UserError, match="unknown convert engine"):
        convert(checkpoint, config, tmp_path / "out", engine="magic")  # type: ignore[arg-type]


def test_config_is_read_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    config = tmp_path / "config.py"
    tiny.save_config(config, tmp_path / "base", extra="target_modules=['a', 'b'], ")
    config.write_text(config.read_text() + f"\nopen({str(marker)!r}, 'w')\n")
    source = read_config(config)
    assert source.base_model == str(tmp_path / "base")
    assert source.lora["target_modules"] == ["a", "b"] and source.lora["r"] == 8
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("x = (", "not a Python config"),
        ("x = 1", "no model"),
        ("model = dict(type=A, llm=dict(pretrained_model_name_or_path='a'))", "trains all weights"),
        ("model = dict(llm=dict(pretrained_model_name_or_path='a'), lora=None)", "trains all"),
        ("model = dict(llm=dict(), lora=dict(r=2**3))", "computed"),
        ("model = dict(llm=dict(), lora=make())", "no model.lora"),
    ],
)
def test_configs_that_cannot_be_read(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(UserError, match=word):
        read_config(path)


# -- DeepSpeed -----------------------------------------------------------------------------------


def _write_zero(folder: Path, stage: int, ranks: int) -> dict[str, torch.Tensor]:
    """A folder as DeepSpeed writes it, from parameters of awkward sizes in two groups."""
    generator = torch.Generator().manual_seed(3)
    groups = [
        {f"llm.base_model.model.l{i}.lora_A.default.weight": (8, 5 + i) for i in range(3)},
        {f"llm.base_model.model.l{i}.lora_B.default.weight": (7, 8) for i in range(2)},
    ]
    values = {n: torch.randn(s, generator=generator) for g in groups for n, s in g.items()}
    folder.mkdir(parents=True)
    shapes = [{n: torch.Size(s) for n, s in g.items()} for g in groups]
    model = {
        "module": {},
        "buffer_names": [],
        "param_shapes": shapes,
        "shared_params": {},
        "ds_version": "0.19.4",
        "frozen_param_shapes": None,
    }
    per_rank: list[list[torch.Tensor]] = [[] for _ in range(ranks)]
    for group in groups:
        if stage <= 2:
            flat = torch.cat([values[n].reshape(-1) for n in group])
            flat = torch.nn.functional.pad(flat, (0, -flat.numel() % (2 * ranks)))
            for rank, part in enumerate(flat.chunk(ranks)):
                per_rank[rank].append(part.clone())
        else:
            for rank in range(ranks):
                parts = []
                for name in group:
                    flat = values[name].reshape(-1)
                    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % ranks))
                    parts.append(flat.chunk(ranks)[rank])
                per_rank[rank].append(torch.cat(parts))
    key = "single_partition_of_fp32_groups" if stage <= 2 else "fp32_flat_groups"
    for rank in range(ranks):
        state = {"zero_stage": stage, "partition_count": ranks, key: per_rank[rank]}
        torch.save(
            {"optimizer_state_dict": state},
            folder / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
        )
        if stage == 3:
            torch.save(model, folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
    if stage <= 2:
        torch.save(model, folder / "mp_rank_00_model_states.pt")
    return values


@pytest.mark.parametrize(("stage", "ranks"), [(1, 1), (2, 2), (2, 3), (3, 1), (3, 2), (3, 4)])
def test_zero_folders(tmp_path: Path, stage: int, ranks: int) -> None:
    values = _write_zero(tmp_path / "iter_3.pth", stage, ranks)
    read = read_zero(tmp_path / "iter_3.pth")
    assert read.keys() == values.keys()
    assert all(np.array_equal(read[n], values[n].numpy()) for n in values)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ranks"), [(2, 2), (3, 2)])
def test_zero_folders_as_xtuner_reads_them(tmp_path: Path, stage: int, ranks: int) -> None:
    compat.importable()
    from xtuner.utils.zero_to_any_dtype import get_state_dict_from_zero_checkpoint

    _write_zero(tmp_path / "iter_3.pth", stage, ranks)
    theirs = get_state_dict_from_zero_checkpoint(str(tmp_path), "iter_3.pth")
    mine = read_zero(tmp_path / "iter_3.pth")
    assert all(torch.equal(theirs[n], torch.from_numpy(mine[n].copy()).half()) for n in mine)


def test_zero_folder_with_a_rank_missing(tmp_path: Path) -> None:
    folder = tmp_path / "iter_3.pth"
    _write_zero(folder, 2, 3)
    (folder / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(UserError, match="2 optimizer files"):
        read_zero(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a DeepSpeed"):
        read_zero(tmp_path / "empty")


@pytest.mark.slow
def test_fast_equals_xtuners_converter(tmp_path: Path) -> None:
    checkpoint, config, *_ = _run(tmp_path, target_modules=["q_proj", "v_proj", "gate_proj"])
    mine = load_file(convert(checkpoint, config, tmp_path / "a") / "adapter_model.safetensors")
    out = convert(checkpoint, config, tmp_path / "b", engine="xtuner")
    theirs = load_file(out / "adapter_model.safetensors")
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_compare_and_sweep_use_the_same_float32_adapter(tmp_path: Path) -> None:
    checkpoint, config, _, _ = _run(tmp_path, target_modules=["q_proj", "v_proj"])
    run = RunPaths(tmp_path / "run")
    [column] = [c for c in discover(tmp_path) if c.checkpoint]
    column.prepare()  # somebody opened Compare first
    assert Path(str(column.adapter)) == run.adapter / "iter_3"
    opened = load_file(Path(str(column.adapter)) / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in opened.values()} == {torch.float32}

    fresh = convert(checkpoint, config, tmp_path / "fresh", fp32=True)
    swept = adapter_of(run, checkpoint) / "adapter_model.safetensors"
    assert swept.read_bytes() == (fresh / "adapter_model.safetensors").read_bytes()


def test_a_float16_adapter_is_not_taken_for_the_checkpoints_own(tmp_path: Path) -> None:
    checkpoint, config, _, _ = _run(tmp_path, target_modules=["q_proj", "v_proj"])
    run = RunPaths(tmp_path / "run")
    convert(checkpoint, config, run.adapter / "iter_3")  # float16, by whatever put it there
    tensors = load_file(adapter_of(run, checkpoint) / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("".join(f"a{i + 1} = [a{i}, a{i}]\n" for i in range(40)), "more values"),
        ("a40 = [a40]\n", "stands for itself"),
        ("a40 = b'8'\n", "computed"),
        ("a40 = ...\n", "computed"),
        ("a40 = 1 + 2j\n", "computed"),
        ("a40 = 0x" + "f" * 5000, "computed"),
    ],
)
def test_a_setting_that_is_no_plain_value(lines: str, why: str, tmp_path: Path) -> None:
    """Forty lines that each name the one before twice stood for 2^40 values."""
    path = tmp_path / "config.py"
    model = "model = dict(llm=dict(pretrained_model_name_or_path='x'), lora=dict(r=a40))\n"
    path.write_text(f"a0 = [1]\n{lines}\n{model}")
    with pytest.raises(UserError, match=why):
        read_config(path)
