"""Model folders as people have them: pickled, unfinished, quantized, or two things in one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from core import fsio
from core.errors import UserError
from core.inference.load import load_model, load_tokenizer
from core.models import catalog
from core.models import folder as folders
from core.training import base as bases
from core.weights import manifest
from core.weights.export import export_gguf
from core.weights.files import read_model
from core.weights.merge import merge
from core.weights.prove import ProofPlan, prove
from tests.fakes import templates
from tests.fakes import tiny_models as tiny

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4873\n"


@pytest.fixture
def model(tiny_llama: Path, tmp_path: Path) -> Path:
    """A folder that a test may spoil."""
    return shutil.copytree(tiny_llama, tmp_path / "model")


def to_bin(model: Path, *, shards: bool = False) -> None:
    """What save_pretrained of older releases wrote."""
    from safetensors.torch import load_file

    state = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    # A tied head was stored too, over the same memory.
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    if not shards:
        torch.save(state, model / "pytorch_model.bin")
        return
    names = {key: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, key in enumerate(state)}
    for name in sorted(set(names.values())):
        torch.save({k: v for k, v in state.items() if names[k] == name}, model / name)
    fsio.write_json(model / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": names})


@pytest.mark.parametrize("shards", [False, True])
def test_bin_bases_simply_work(model: Path, tiny_llama: Path, tmp_path: Path, shards: bool) -> None:
    """Resolve, train's checks, merge, proof, chat, GGUF; equal to the safetensors twin."""
    to_bin(model, shards=shards)
    ref = catalog.resolve(str(model))
    bases.require_trainable(ref.path)
    tiny.save_adapter(tiny_llama, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    out = merge(ref, tmp_path / "adapter", tmp_path / "out")
    twin = merge(tiny.ref_of(tiny_llama), tmp_path / "adapter", tmp_path / "twin")
    mine, theirs = read_model(out), read_model(twin)
    assert {k: (t.dtype, t.shape, bytes(t.read())) for k, t in mine.items()} == {
        k: (t.dtype, t.shape, bytes(t.read())) for k, t in theirs.items()
    }
    assert prove(ref, tmp_path / "adapter", out, ProofPlan(nf4=False)).ok
    manifest.write(model, {"kind": "merged"})
    assert export_gguf(model, tmp_path / "gguf", kind="f16").is_dir()


def test_a_bin_that_is_code_is_refused(model: Path) -> None:
    import os

    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(model / "ran"),)

    to_bin(model)
    torch.save({"model.embed_tokens.weight": Bomb()}, model / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read in place"):
        read_model(model)
    with pytest.raises(UserError, match="cannot load"):
        load_model(model)
    assert not (model / "ran").exists()


def test_the_advice_for_weights_that_cannot_be_read_in_place_is_true(
    model: Path, tmp_path: Path
) -> None:
    """A tensor stored with gaps: load it and save it again."""
    to_bin(model)
    path = model / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    key = "model.layers.0.self_attn.q_proj.weight"
    state[key] = state[key].t().contiguous().t()
    torch.save(state, path)
    with pytest.raises(UserError, match="save_pretrained"):
        read_model(model)
    tiny.load(model).save_pretrained(tmp_path / "again")
    assert torch.equal(tiny.load(tmp_path / "again").state_dict()[key], state[key])
    assert key in read_model(tmp_path / "again")


def _lfs_weights(model: Path) -> None:
    (model / "model.safetensors").write_text(POINTER)


def _lfs_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text(POINTER)


def _lfs_config(model: Path) -> None:
    (model / "config.json").write_text(POINTER)


def _lfs_bin(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_text(POINTER)


def _lfs_shard(model: Path) -> None:
    _shard_missing(model)
    (model / "model-00002-of-00002.safetensors").write_text(POINTER)


def _shard_missing(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    fsio.write_json(model / "model.safetensors.index.json", {"weight_map": names})


def _adapter_beside(model: Path) -> None:
    """With a hub name in it, which transformers would fetch."""
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "nobody/nothing", "r": 8}
    fsio.write_json(model / "adapter_config.json", adapter)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "lfs weights": (_lfs_weights, "git-lfs pointers instead of files: model.safetensors"),
    "lfs tokenizer": (_lfs_tokenizer, "git-lfs pointers instead of files: tokenizer.json"),
    "lfs config": (_lfs_config, "git-lfs pointers instead of files: config.json"),
    "lfs bin": (_lfs_bin, "git-lfs pointers instead of files: pytorch_model.bin"),
    "lfs shard": (_lfs_shard, "git-lfs pointers instead of files: model-00002-of-00002"),
    "shard missing": (_shard_missing, "names model-00002-of-00002.safetensors, which is not"),
    "adapter beside": (_adapter_beside, "holds a model and an adapter"),
}


def _model_command(model: Path) -> None:
    from core.commands.main import main

    code = main(["model", str(model)])
    raise UserError(str(code))  # not reached with a message


def _merge(model: Path) -> None:
    tiny_adapter = model.parent / "adapter"
    tiny_adapter.mkdir()
    merge(tiny.ref_of(model), tiny_adapter, model.parent / "out")


ENTRANCES: dict[str, Callable[[Path], Any]] = {
    "resolve": lambda model: catalog.resolve(str(model)),
    "load": load_model,
    "merge": _merge,
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("fault", BROKEN)
def test_a_folder_that_is_not_one_whole_model_is_one_message(
    model: Path, fault: str, entrance: str
) -> None:
    change, message = BROKEN[fault]
    change(model)
    with pytest.raises(UserError) as found:
        ENTRANCES[entrance](model)
    assert message in str(found.value)


def test_moving_the_adapter_away_helps(model: Path, tiny_llama: Path) -> None:
    tiny.save_adapter(tiny_llama, model, target_modules=["q_proj"])
    with pytest.raises(UserError, match="into a folder of their own"):
        catalog.resolve(str(model))
    adapter = model.parent / "adapter"
    adapter.mkdir()
    for file in model.glob("adapter_*"):
        file.rename(adapter / file.name)
    assert catalog.resolve(str(model)).path == model
    load_model(model, adapter=adapter)


def _quantized(model: Path, change: dict[str, Any]) -> None:
    config = fsio.read_json(model / "config.json")
    fsio.write_json(model / "config.json", {**config, "quantization_config": change})


def _old_gptq(model: Path) -> None:
    fsio.write_json(model / "quantize_config.json", {"bits": 4, "group_size": 128})


def _packed(model: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(model / "model.safetensors")
    state["model.layers.0.self_attn.q_proj.qweight"] = torch.zeros(4, 4, dtype=torch.int32)
    save_file(state, model / "model.safetensors", {"format": "pt"})


QUANTIZED: dict[str, tuple[Callable[[Path], None], str]] = {
    "bnb 4": (
        lambda m: _quantized(m, {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "bitsandbytes 4-bit",
    ),
    "bnb 8": (
        lambda m: _quantized(m, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "bitsandbytes 8-bit",
    ),
    "gptq": (lambda m: _quantized(m, {"quant_method": "gptq", "bits": 4}), "gptq"),
    "awq": (lambda m: _quantized(m, {"quant_method": "awq", "bits": 4}), "awq"),
    "fp8": (lambda m: _quantized(m, {"quant_method": "fp8"}), "fp8"),
    "mxfp4": (lambda m: _quantized(m, {"quant_method": "mxfp4"}), "mxfp4"),
    "no method": (lambda m: _quantized(m, {"bits": 4}), "unknown method"),
    "old gptq": (_old_gptq, "quantize"),
    "tensors": (_packed, "qweight"),
}


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantized_base_is_refused_before_training(
    model: Path, tmp_path: Path, workspace: Path, kind: str
) -> None:
    from core.pipeline.tune import TuneSpec, prepare
    from core.training.preflight import preflight
    from core.training.spec import TrainSpec

    change, method = QUANTIZED[kind]
    change(model)
    with pytest.raises(UserError, match="quantized already") as found:
        prepare(
            TuneSpec(persona="data_templates/assistant.yaml", model=str(model)),
            tmp_path / "t",
            resume=False,
        )
    assert method in str(found.value) and not (tmp_path / "t").exists()
    problems = [p.what for p in preflight(TrainSpec(dataset="nowhere", model=str(model))).problems]
    assert any("quantized already" in what for what in problems)
    with pytest.raises(UserError, match="quantized already"):
        merge(tiny.ref_of(model), tmp_path / "adapter", tmp_path / "out")


def test_a_template_that_cannot_be_trained_is_refused_before_it(
    model: Path, tmp_path: Path
) -> None:
    from core.pipeline.tune import TuneSpec, prepare

    (model / "chat_template.jinja").write_text(templates.plain_end(""))
    with pytest.raises(UserError, match="nothing after a reply"):
        prepare(
            TuneSpec(persona="data_templates/assistant.yaml", model=str(model)),
            tmp_path / "t",
            resume=False,
        )


@pytest.mark.parametrize(
    "scaling", [None, {"rope_type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}]
)
def test_both_spellings_of_the_positions_give_the_same_numbers(
    tiny_llama: Path, tmp_path: Path, scaling: dict[str, Any] | None
) -> None:
    """transformers 5 writes ``rope_parameters`` and ``dtype``, published folders have the older."""
    logits, files = [], []
    tiny.save_adapter(tiny_llama, tmp_path / "adapter", target_modules=["q_proj"])
    for spelling in ("newer", "older"):
        folder = shutil.copytree(tiny_llama, tmp_path / spelling)
        config = fsio.read_json(folder / "config.json")
        for key in ("rope_parameters", "rope_theta", "rope_scaling", "dtype", "torch_dtype"):
            config.pop(key, None)
        kind = scaling or {"rope_type": "default"}
        if spelling == "newer":
            config |= {"rope_parameters": {**kind, "rope_theta": 5e5}, "dtype": "float32"}
        else:
            config |= {"rope_theta": 5e5, "rope_scaling": scaling, "torch_dtype": "float32"}
        fsio.write_json(folder / "config.json", config)
        out = merge(tiny.ref_of(folder), tmp_path / "adapter", tmp_path / f"{spelling}-out")
        with torch.inference_mode():
            logits.append(load_model(out)(torch.tensor([list(range(40))])).logits)
        if scaling is None:
            gguf = export_gguf(out, tmp_path / f"{spelling}-gguf", kind="f16")
            files.append((gguf / "model-f16.gguf").read_bytes())
            from gguf import GGUFReader

            fields = GGUFReader(gguf / "model-f16.gguf").fields
            assert fields["llama.rope.freq_base"].contents() == 5e5
    assert torch.equal(*logits)
    assert (
        logits[0] - load_model(tiny_llama)(torch.tensor([list(range(40))])).logits
    ).abs().max() > 1e-3
    assert not files or files[0] == files[1]


def test_what_is_loaded_has_a_tokenizer_too(model: Path) -> None:
    assert load_tokenizer(model).chat_template
    assert folders.quantization(model) == ""
